"""The public interface as users write it. Type-checked by mypy and pyright (both strict), never run."""

# ruff: noqa: RUF012

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, assert_type

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.amp.grad_scaler import GradScaler  # torch 2.6 doesn't say that torch.amp has it

import async_trainer
from async_trainer import (
    AsyncTrainerError,
    Callback,
    CallbacksHandler,
    ComputationalConfig,
    Event,
    Maps,
    MetricsHandler,
    Model,
    OptimizationConfig,
    Split,
    SupervisedModel,
    Trainer,
    TrainerState,
    background,
    capture,
    inline,
    keep,
)
from async_trainer.callback import Background, Inline
from async_trainer.callbacks import EarlyStopping, Figures, LRScheduler, MetricsLog, ModelCheckpoint, Progress, Upload
from async_trainer.files.weights import load_weights
from async_trainer.listeners import LaneEvent, Listener, LogHooks, OpenTelemetry
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.stats import Failure, LaneStats, Report, Stats
from async_trainer.watching.trace_file import merge_traces

# ------------------------------------------------------------------------------------------------------------- hooks


class SomeArguments(Callback):
    """Any subset of an event's arguments, typed or not, with or without the rest."""

    background = {"queue_size": 10_000, "overflow": "latest", "every": {"on_batch_end": 50}}

    def on_train_start(self, *, maps: Any, **kwargs: Any) -> None: ...

    def on_epoch_start(self, **kwargs: Any) -> None: ...

    def on_epoch_end(self) -> None: ...

    def on_batch_end(self, *, state: TrainerState) -> None:
        assert_type(state.current_epoch, int)

    def on_backward_step_start(self, *, state: TrainerState, loss: torch.Tensor, event: Any, **kwargs: Any) -> None: ...


class LaterProvided(Callback):
    """Arguments that the start of the run provides, named by later hooks; and optional ones."""

    def on_batch_end(
        self, *, optimizers: dict[str, torch.optim.Optimizer], metrics: Any, extra: float = 0.0
    ) -> None: ...

    def on_exception(self, *, exception: BaseException, group_name: str | None = None, **kwargs: Any) -> None: ...


class Asynchronous(Callback):
    """``async def`` beside plain hooks."""

    async def on_train_start(self, *, split: Any, **kwargs: Any) -> None: ...

    async def on_batch_end(self, *, model: torch.nn.Module, state: TrainerState) -> None: ...

    def on_train_end(self) -> None: ...


class Stateful(Callback):
    """A state, narrower than the base's in what it returns."""

    def __init__(self) -> None:
        self.rows = 0

    def on_batch_end(self, **kwargs: Any) -> None:
        self.rows += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rows = state_dict["rows"]


class MoreStateful(Stateful):
    """A subclass of a user's own callback: its hooks can be called with ``super()``."""

    def on_batch_end(self, **kwargs: Any) -> None:
        super().on_batch_end(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        assert_type(super().state_dict(), dict[str, Any])
        return super().state_dict()


class Annotated(Callback):
    """``background`` as linters want it (ruff's RUF012)."""

    background: ClassVar = {"lane": "files"}


class Plain:
    """No base class."""

    background = {"placement": "thread"}

    def on_batch_end(self, *, state: TrainerState) -> None: ...

    async def on_rollout_end(self, *, reward: float) -> None: ...


# ----------------------------------------------------------------------------------------------- background and inline

assert_type(background(SomeArguments()), Background)
assert_type(background(Plain(), placement="thread", name="plain", queue_size=5), Background)
assert_type(background([Plain(), Stateful()], on_error="disable"), list[Background])
assert_type(background([Plain()]), list[Background])
assert_type(background((Plain(), Plain())), list[Background])
assert_type(inline(SomeArguments()), Inline)
assert_type(inline([SomeArguments(), Plain()]), list[Inline])
assert_type(background(Plain()).options.queue_size, int)


def is_tenth(*, state: TrainerState, **kwargs: Any) -> bool:
    return state.current_train_batch % 10 == 0


def first(output: torch.Tensor) -> torch.Tensor:
    return output[:1]


everything = background(
    Plain(),
    placement="task",
    name=None,
    lane="files",
    queue_size=1024,
    overflow="drop_oldest",
    on_error="raise_at_end",
    retries=3,
    backoff=0.5,
    timeout=10.0,
    every={"on_batch_end": 50, Event.EPOCH_END: 2},
    when=is_tenth,
    select={"output": first, "model": None, "loss": lambda loss: loss.item()},
)


# ---------------------------------------------------------------------------------------------------------- the handler

handler = CallbacksHandler(
    [SomeArguments(), background(Asynchronous()), background([Plain(), Plain()]), inline(LaterProvided())],
    events=["on_rollout_end"],
    max_workers=4,
    max_snapshot_bytes=1 << 30,
    stall_timeout=30.0,
    shutdown_timeout=10.0,
    switch_interval=None,
    synchronous=True,
)
CallbacksHandler()
CallbacksHandler((Plain(), background(Plain())))


def loop(state: TrainerState, loss: torch.Tensor) -> None:
    handler.call_event(Event.BATCH_END, state=state, loss=loss, anything={"at": ["all"]})
    handler.call_event("on_rollout_end", reward=1.0)
    handler.call_event(Event("on_batch_end"))
    handler.fence()
    with CallbacksHandler([Plain()]) as entered:
        assert_type(entered, CallbacksHandler)
        entered.call_event(Event.EPOCH_END)
    handler.add_callbacks([Plain(), background([Plain()])])


def waits() -> None:
    barrier = handler.barrier()
    assert_type(barrier, Barrier)
    assert_type(barrier.done, bool)
    assert_type(barrier.late, tuple[str, ...])
    assert_type(barrier.wait(), dict[str, Any])
    assert_type(handler.barrier().wait(timeout=1.5), dict[str, Any])
    handler.load_state_dict(handler.state_dict())
    handler.load_state_dict({"loss_curve": {"rows": 3}})
    assert_type(handler.flush(), Report)
    assert_type(handler.flush(timeout=1), Report)


class Slowest:
    seconds = 0.0

    def lane_event(self, event: LaneEvent) -> None:
        self.seconds = max(self.seconds, event.ended - event.began)


slowest: Listener = Slowest()


def books() -> None:
    report = handler.close(timeout=None)
    assert_type(report, Report)
    assert_type((report.delivered, report.failed, report.dropped, report.lost), tuple[int, int, int, int])
    assert_type(report.errors, tuple[Failure, ...])
    assert_type(report.errors[0].error, BaseException)
    assert_type(report.stalled, tuple[str, ...])
    assert_type(report.ok, bool)
    report.raise_for_errors()
    stats = handler.stats()
    assert_type(stats, Stats)
    assert_type(stats.lanes["plain"], LaneStats)
    assert_type(stats.lanes["plain"].delivered, int)
    assert_type(stats.lanes["plain"].running, str | None)
    assert_type(stats.waits.queue, float)
    print(stats, handler.explain())
    handler.publish(Path("runs"), step=Event.BATCH_END)
    handler.listen(LogHooks(slow=1.0, logger=logging.getLogger("lanes")))
    handler.listen(OpenTelemetry())
    handler.listen(Slowest())
    assert_type(merge_traces(["runs/timeline.json.gz", Path("torch.json")], "both.json.gz"), int)


# -------------------------------------------------------------------------------------------------------------- proxies


class Writer:
    """A target: what a proxy of it is typed as."""

    closed: bool = False

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None: ...

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None: ...


def save(value: object, path: Path) -> None: ...


def proxies() -> None:
    writer = handler.proxy(Writer(), name="writer", queue_size=10, overflow="latest")
    assert_type(writer, Writer)
    writer.add_scalar("loss", 0.5, 3)
    assert_type(writer.closed, bool)
    with writer as entered:
        assert_type(entered, Writer)
    made = handler.proxy(factory=Writer, on_error="raise_at_end")
    assert_type(made, Writer)
    assert_type(handler.proxy(factory=lambda: Path("x")), Path)
    handler.proxy(save)({"a": 1}, Path("a.pt"))
    handler.proxy(logging).info("a module")
    logging.getLogger().addHandler(handler.proxy(logging.StreamHandler()))


# ------------------------------------------------------------------------------------------------- capturing, keeping


class Net(torch.nn.Module):
    """A type of the user's own."""

    def small(self) -> Net:
        return self


@capture.register(Net)
def take(live: Net) -> Net:
    return live.small()


assert_type(take(Net()), Net)


class Keeper(Callback):
    """Keeps a model beyond its hook."""

    def on_epoch_end(self, *, model: Net, **kwargs: Any) -> None:
        self.model = keep(model)
        assert_type(self.model, Net)


# ---------------------------------------------------------------------------------------------------------- the Trainer


class Autoencoder(Model):
    """A model of the user's own, with a dict of losses and two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(8, 2)
        self.decoder = torch.nn.Linear(2, 8)

    def forward_step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        code = self.encoder(batch["image"])
        return {"error": (self.decoder(code) - batch["image"]).square().mean(), "size": code.abs().mean()}

    def backward_step(self, loss: Any, grad_scaler: GradScaler) -> None:
        super().backward_step(loss, grad_scaler)

    def optimization_step(self, optimizers: dict[str, torch.optim.Optimizer], grad_scaler: GradScaler) -> None:
        for optimizer in optimizers.values():
            grad_scaler.step(optimizer)

    def evaluation_step(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"preds": self.decoder(self.encoder(batch["image"])), "target": batch["image"], "sample": batch["name"]}

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "encoder": torch.optim.Adam(self.encoder.parameters()),
            "decoder": torch.optim.SGD(self.decoder.parameters(), lr=0.1),
        }

    def get_loss_functions(self) -> dict[str, Callable[..., torch.Tensor]]:
        return {"error": torch.nn.functional.mse_loss}


class OneLoss(Model):
    """The steps that a model must have; the loss is a tensor, the outputs are tensors."""

    def forward_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return batch[0].mean()

    def evaluation_step(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {"preds": batch[0]}

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}


class Loader:
    """Batches, each time that it is iterated."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        yield [torch.zeros(1), torch.zeros(1)]


class Seen(Callback):
    """What a Trainer brings, by its types; any subset."""

    def on_trainer_init(self, *, metrics: MetricsHandler, optimization: OptimizationConfig) -> None: ...

    def on_train_start(self, *, split: Split, computational: ComputationalConfig, **kwargs: Any) -> None: ...

    def on_backward_step_start(self, *, loss: torch.Tensor | dict[str, torch.Tensor]) -> None: ...

    def on_metrics_computation_end(self, *, detailed_metrics_df: pd.DataFrame) -> None: ...

    async def on_validation_end(self, *, model: SupervisedModel, metrics: MetricsHandler, state: TrainerState) -> None:
        assert_type(metrics.get_metric_value("loss"), float)
        assert_type(metrics.df, pd.DataFrame)

    def on_epoch_end(self, *, maps: Maps, state: TrainerState) -> None:
        assert_type(maps.split(state.split_idx or 0).logs, Path)

    def on_test_end(self, *, group_name: str, model_checkpoint: str) -> None: ...


def accuracy(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return preds.argmax(1) == target


def make_adam(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params)


def draw(*, state: TrainerState, metrics: MetricsHandler) -> Figure | None:
    return Figure() if state.current_epoch else None


class Labelled(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A dataset of mappings."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.zeros(8), "label": torch.zeros(())}


def study() -> None:
    model = SupervisedModel(
        torch.nn.Linear(8, 10), torch.nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, lr=0.1)
    )
    SupervisedModel(torch.nn.Linear(8, 1), torch.nn.functional.mse_loss, make_adam, keys=("image", "label"))
    callbacks = [
        EarlyStopping("loss", mode="min", patience=3, min_delta=0.01),
        LRScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)),
        LRScheduler(torch.optim.lr_scheduler.ReduceLROnPlateau, metric="loss", optimizer="optimizer"),
        Progress(),
        background(MetricsLog("log.csv", every=10), queue_size=10_000),
        inline(MetricsLog()),
        ModelCheckpoint("accuracy", mode="max", epochs=range(10, 100, 10), last=True, format="safetensors"),
        Upload("s3://bucket/run", files=["checkpoints/*"], options={"endpoint_url": "http://127.0.0.1:9000"}),
        Figures(draw, every=5),
        background([Seen(), SomeArguments()], every={"on_batch_end": 50}),
    ]
    trainer = Trainer(
        Path("runs/study"),
        model,
        metrics={"accuracy": accuracy},
        optimization=OptimizationConfig(num_epochs=5, accumulation_steps=2, evaluation_interval=2, clip_grad_norm=1.0),
        callbacks=callbacks,
        overwrite=True,
    )
    Trainer(Maps("runs/other"), Autoencoder(), MetricsHandler(accuracy=accuracy), callbacks=CallbacksHandler(callbacks))
    Trainer("runs/third", OneLoss())
    computational = ComputationalConfig(device="cpu", amp=True, channels_last=True, seed=0, deterministic=True)
    trained = trainer.train(Split(0, Labelled(), Labelled(), batch_size=32, num_workers=2), computational)
    assert_type(trained, pd.DataFrame)
    for split in Split.k_folds(Labelled(), n_splits=3, seed=1, batch_size=32):
        assert_type(split, Split)
        trainer.train(split, computational, metrics=["accuracy"])
    trainer.train(Split(7, Loader()))
    trainer.add_callbacks([Progress()])
    trainer.add_metrics(error=torch.nn.functional.mse_loss)
    assert_type(trainer.validate(0, ["loss"], Loader(), "best-loss"), pd.DataFrame)
    loader = torch.utils.data.DataLoader(Labelled())
    assert_type(trainer.test("split-0_final", "held-out", dataloader=loader, computational=computational), pd.DataFrame)
    assert_type(Trainer.from_maps("runs/study", model=model, metrics={}, callbacks=[Seen()]), Trainer)
    assert_type(trainer.callbacks, CallbacksHandler)
    assert_type(trainer.callbacks.stats(), Stats)
    assert_type(trainer.callbacks.finish(), Report)
    assert_type(trainer.maps.splits, tuple[int, ...])
    assert_type(trainer.maps.split(0).metrics, Path)
    assert_type(trainer.metrics.names, tuple[str, ...])
    assert_type(trainer.state.current_epoch, int)
    weights, about = load_weights(trainer.maps.checkpoint("split-0_best-loss"), device="cpu")
    assert_type(weights, dict[str, Any])
    assert_type(about, dict[str, Any])


class BranchTrainer(Trainer):
    """A subclass: from_maps makes one."""


assert_type(BranchTrainer.from_maps("runs/study"), BranchTrainer)


# -------------------------------------------------------------------------------------------------------- the lazy root


def root() -> None:
    assert_type(async_trainer.Event.BATCH_END.arguments, tuple[str, ...])
    assert_type(async_trainer.background(Plain()), Background)
    assert_type(async_trainer.inline(Plain()), Inline)
    assert_type(async_trainer.CallbacksHandler().flush().delivered, int)
    assert_type(async_trainer.TrainerState().optim_step, int)
    assert_type(async_trainer.Callback().state_dict(), Mapping[str, Any])
    assert_type(async_trainer.keep(3), int)
    async_trainer.background(Plain(), select={"model": async_trainer.with_gradients})
    assert_type(async_trainer.__version__, str)
    async_trainer.capture.register(Net)
    assert_type(async_trainer.Trainer.from_maps("runs"), Trainer)
    assert_type(async_trainer.Maps("runs").path, Path)
    assert_type(async_trainer.Split(0, Loader()).index, int)
    assert_type(async_trainer.OptimizationConfig().num_epochs, int)
    assert_type(async_trainer.ComputationalConfig().torch_device, torch.device)
    assert_type(async_trainer.MetricsHandler().last, dict[str, Any])
    models: list[async_trainer.Model] = [async_trainer.SupervisedModel(Net(), torch.nn.MSELoss(), torch.optim.Adam)]
    print(models)
    try:
        handler.flush()
    except async_trainer.AsyncTrainerError as error:
        assert_type(error, AsyncTrainerError)
