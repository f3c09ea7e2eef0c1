"""Small trainings with transformers' Trainer, and callbacks that look at what they get."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

OF_RNG: list[Any] = [np.ndarray, np.dtype, np._core.multiarray._reconstruct, type(np.dtype(np.uint32))]
"""What NumPy's generator is kept with in a checkpoint."""


class Words(Dataset[dict[str, torch.Tensor]]):
    """Random words."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = torch.randint(0, 32, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": words, "labels": words}


class Rows(TrainerCallback):
    """Writes to a file what it sees."""

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path = path
        self.resumed = resumed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        types = (
            isinstance(args, TrainingArguments),
            isinstance(state, TrainerState),
            isinstance(control, TrainerControl),
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("a" if self.resumed else "w").close()
        self._row("begin", *types, model.config.n_embd, args.learning_rate, json.dumps(args.to_dict())[:60])

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> Any:
        weight = model.transformer.wte.weight.double().sum().item()
        self._row(state.global_step, state.epoch, weight, lr_scheduler.get_last_lr(), control.should_save)
        return control

    def on_pre_optimizer_step(self, a: Any, s: Any, c: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        self._row(model.transformer.wte.weight.grad.norm().item(), len(optimizer.state_dict()["state"]))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        stable = {key: value for key, value in logs.items() if not key.endswith(("runtime", "per_second"))}
        self._row(state.global_step, stable, len(state.log_history), state.max_steps, sorted(kwargs))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self._row("evaluated", metrics["eval_loss"], state.best_metric)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._row("saved", state.global_step, (folder / "model.safetensors").stat().st_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._row("end", state.global_step, [entry.get("loss") for entry in state.log_history])

    def _row(self, *values: Any) -> None:
        with self.path.open("a") as file:
            print(*values, file=file)


class Breaks(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise OSError("the machine breaks")


def make_trainer(folder: Path, callbacks: Iterable[Any] = (), **options: Any) -> Trainer:
    """8 steps, 4 an epoch."""
    torch.manual_seed(0)
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_strategy": "epoch",
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        **options,
    }
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    return Trainer(
        GPT2LMHeadModel(config),
        TrainingArguments(str(folder), **settings),
        train_dataset=Words(),
        eval_dataset=Words(),
        callbacks=list(callbacks),
    )


def contents(folder: Path) -> dict[str, Any]:
    """What is in the files of a folder: text, or what torch reads; without what is measured."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".pt", ".pth"):
            with torch.serialization.safe_globals(OF_RNG):
                found[name] = torch.load(path, weights_only=True)
        elif path.name == "trainer_state.json":
            found[name] = json.loads(path.read_text())
            for entry in found[name]["log_history"]:
                for key in [key for key in entry if key.endswith(("runtime", "per_second"))]:
                    del entry[key]
        elif path.is_file() and path.name != "training_args.bin":  # which holds the folder's own path
            found[name] = path.read_bytes()
    return found
