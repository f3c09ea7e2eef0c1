"""handler.checkpoint and handler.restore, in a loop of one's own."""

from __future__ import annotations

import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.resume.bundles import Bundles


class Counts(Callback):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_batch_end(self, *, n: int) -> None:
        self.rows.append(n)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.rows = list(state_dict["rows"])


class Asks(Callback):
    """Asks for a checkpoint, inline, before its event has reached any lane."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handler: Any = None
        self.made: list[Any] = []

    def on_batch_end(self, *, n: int) -> None:
        if n == 3:
            self.made.append(self.handler.checkpoint(self.folder))


def test_a_checkpoint_that_an_inline_hook_asks_for_holds_its_event(tmp_path: Path) -> None:
    asks, counts = Asks(tmp_path), Counts()
    with CallbacksHandler([asks, background(counts)]) as handler:
        asks.handler = handler
        for n in range(1, 6):
            handler.call_event("on_batch_end", n=n)
        assert asks.made[0].wait(30)["counts"] == {"rows": [1, 2, 3]}
    again = Counts()
    with CallbacksHandler([Asks(tmp_path), background(again)]) as handler:
        handler.restore(tmp_path)
    assert again.rows == [1, 2, 3]


def test_objects_and_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, dict[str, Any]]:
        model = nn.Linear(300, 300)
        return model, {
            "one": torch.optim.Adam(model.parameters()),
            "two": [torch.optim.SGD(model.parameters(), lr=0.1)],
        }

    model, optimizers = make()
    with CallbacksHandler() as handler:
        model(torch.ones(1, 300)).sum().backward()
        optimizers["one"].step()
        expected = {name: value.clone() for name, value in model.state_dict().items()}
        gradient = next(model.parameters()).grad
        checkpoint = handler.checkpoint(tmp_path, model=model, optimizers=optimizers)
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        optimizers["one"].step()  # waits for what is still being copied
        checkpoint.wait(30)
        other, others = make()
        handler.restore(tmp_path, model=other, optimizers=others)
        assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == drawn
    assert all(torch.equal(expected[name], value) for name, value in other.state_dict().items())
    assert gradient is not None
    assert torch.equal(next(other.parameters()).grad, gradient)  # type: ignore[arg-type]
    assert others["one"].state_dict()["state"][0]["step"] == 1


def test_what_every_has_counted_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": {"on_batch_end": 3}}
    with CallbacksHandler([background(Counts(), **options)]) as handler:
        for n in range(1, 6):
            handler.call_event("on_batch_end", n=n)
        handler.checkpoint(tmp_path).wait(30)
    counts = Counts()
    with CallbacksHandler([background(counts, **options)]) as handler:
        handler.restore(tmp_path)
        for n in range(6, 10):
            handler.call_event("on_batch_end", n=n)
    assert counts.rows == [3, 6, 9]


def test_one_is_under_way_at_a_time(tmp_path: Path) -> None:
    gate = threading.Event()

    class Waits(Counts):
        def on_batch_end(self, *, n: int) -> None:
            assert gate.wait(30)
            super().on_batch_end(n=n)

    with CallbacksHandler([background(Waits())]) as handler:
        handler.call_event("on_batch_end", n=1)
        first, second = handler.checkpoint(tmp_path), handler.checkpoint(tmp_path)
        assert second.done
        assert second.skipped
        assert not first.done
        gate.set()
        assert first.wait(30) == {"waits": {"rows": [1]}}
        third = handler.checkpoint(tmp_path)
        third.wait(30)
    assert [path.name for path in Bundles(tmp_path).paths] == ["bundle-000002", "bundle-000001"]
    assert (tmp_path / "latest").read_text() == "bundle-000002\n"


def test_a_callback_that_hangs_costs_no_checkpoint(tmp_path: Path) -> None:
    from async_trainer.resume import cut

    gate = threading.Event()

    class Hangs(Counts):
        def on_batch_end(self, *, n: int) -> None:
            if n == 2:
                assert gate.wait(60)
            super().on_batch_end(n=n)

    counts = Counts()
    with CallbacksHandler([background(Hangs()), background(counts)]) as handler:
        handler.call_event("on_batch_end", n=1)
        handler.checkpoint(tmp_path).wait(30)
        handler.call_event("on_batch_end", n=2)
        checkpoint = cut.take(handler, tmp_path, lambda: ({}, {}), deadline=0.1)
        states = checkpoint.wait(30)
        assert states == {"hangs": {"rows": [1]}, "counts": {"rows": [1, 2]}}
        assert checkpoint.late == ("hangs",)
        assert checkpoint.path is not None
        manifest = json.loads((checkpoint.path / "manifest.json").read_text())
        assert manifest["late"] == {"hangs": "as of the checkpoint before"}
        gate.set()
    thread = handler._checkpoints and handler._checkpoints._thread
    assert thread is not None
    thread.join(30)
    assert Bundles(tmp_path).read().callbacks == {"hangs": {"rows": [1, 2]}, "counts": {"rows": [1, 2]}}


@pytest.mark.parametrize("value", [np.ones(3), Path("x"), object()], ids=["array", "path", "object"])
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(
    tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Counts):
        def state_dict(self) -> dict[str, Any]:
            return {"fine": 1, "odd": [value]}

    good = Counts()
    handler = CallbacksHandler([background(good)])
    handler.checkpoint(tmp_path).wait(30)
    handler.add_callbacks([background(Odd())])
    with pytest.raises(LaneError, match=r"the state of odd\['odd'\]\[0\] is a \w+, which torch.load"):
        handler.checkpoint(tmp_path).wait(30)
    with pytest.raises(LaneError, match="the checkpoint failed"):
        handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle-000001", "latest"]


def damage_by_truncation(bundle: Path) -> None:
    file = bundle / "objects.pt"
    file.write_bytes(file.read_bytes()[:-10])


def damage_by_a_byte(bundle: Path) -> None:
    file = bundle / "callbacks.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_by_loss(bundle: Path) -> None:
    (bundle / "objects.pt").unlink()


def damage_of_the_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_a_byte, damage_by_loss, damage_of_the_manifest, shutil.rmtree]
)
def test_a_damaged_bundle_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    with CallbacksHandler([background(counts)]) as handler:
        for n in (1, 2):
            handler.call_event("on_batch_end", n=n)
            handler.checkpoint(tmp_path).wait(30)
    damage(tmp_path / "bundle-000002")
    again = Counts()
    with CallbacksHandler([background(again)]) as handler:
        handler.restore(tmp_path)
    assert again.rows == [1]
    assert damage is shutil.rmtree or "bundle-000002 is damaged" in caplog.text


def test_a_disk_that_takes_nothing_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    handler = CallbacksHandler([background(counts)])
    handler.call_event("on_batch_end", n=1)
    handler.checkpoint(tmp_path).wait(30)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", full)
        with pytest.raises(LaneError, match=r"No space left on device: .*; the last that was made is still there"):
            handler.checkpoint(tmp_path).wait(30)
    assert [path.name for path in tmp_path.glob("*bundle*")] == ["bundle-000001"]
    handler.call_event("on_batch_end", n=2)
    handler.checkpoint(tmp_path).wait(30)
    assert Bundles(tmp_path).read().callbacks == {"counts": {"rows": [1, 2]}}
    with pytest.raises(LaneError):
        handler.close()


def test_mistakes_are_told_before_anything_is_touched(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with CallbacksHandler() as handler:
        with pytest.raises(ConfigurationError, match="there is no resume state"):
            handler.restore(tmp_path / "nothing", model=model)
        with pytest.raises(ConfigurationError, match=r"model is a object, without state_dict and load_state_dict"):
            handler.checkpoint(tmp_path, model=object())
        handler.checkpoint(tmp_path, model=model).wait(30)
        with pytest.raises(ConfigurationError, match=r"restore: optimizer: not in .*; there are: model"):
            handler.restore(tmp_path, optimizer=torch.optim.SGD(model.parameters()))
        with pytest.raises(ConfigurationError, match="model: what was saved is of another Linear"):
            handler.restore(tmp_path, model=nn.Linear(3, 2))


def test_a_checkpoint_that_fails_gives_its_memory_back(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = nn.Linear(1000, 1000)
    handler = CallbacksHandler()
    for _ in range(3):
        with pytest.raises(LaneError, match="the checkpoint failed"):
            handler.checkpoint(tmp_path / "file" / "folder", model=model).wait(30)
    assert handler.stats().snapshot_bytes == 0
    with pytest.raises(LaneError):
        handler.close()


def test_what_a_killed_process_has_left_goes_before_there_is_no_room(tmp_path: Path) -> None:
    left = tmp_path / ".bundle-000001.999999999-0.partial"
    left.mkdir()
    (left / "objects.pt").touch()
    with CallbacksHandler() as handler:
        handler.checkpoint(tmp_path).wait(30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle-000001", "latest"]


def test_a_state_that_raises_costs_the_checkpoint_and_not_the_training(tmp_path: Path) -> None:
    class Raises(Callback):
        def on_batch_end(self, *, n: int) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            raise OSError("no state")

    handler = CallbacksHandler([Raises()])
    handler.call_event("on_batch_end", n=1)
    with pytest.raises(LaneError, match="the checkpoint failed: OSError: no state"):
        handler.checkpoint(tmp_path).wait(30)
    handler.call_event("on_batch_end", n=2)
    with pytest.raises(LaneError):
        handler.close()


@pytest.mark.parametrize("compiled", [(True, False), (False, True), (True, True)])
def test_a_compiled_model_goes_on_as_one_that_is_not_and_the_other_way_round(
    tmp_path: Path, compiled: tuple[bool, bool]
) -> None:
    def make(compile: bool) -> nn.Module:  # noqa: A002
        inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        return nn.Sequential(torch.compile(inner) if compile else inner)  # type: ignore[arg-type]

    one, other = make(compiled[0]), make(compiled[1])
    with CallbacksHandler() as handler:
        handler.checkpoint(tmp_path, model=one).wait(30)
        handler.restore(tmp_path, model=other)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_module_whose_snapshot_has_another_state_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
        state["more"] = torch.ones(1)

    model.register_state_dict_post_hook(hook)
    handler = CallbacksHandler()
    with pytest.raises(LaneError, match=r"model: its state_dict\(\) and that of its snapshot differ in 'more'"):
        handler.checkpoint(tmp_path, model=model).wait(30)
    with pytest.raises(LaneError):
        handler.close()


def test_plain_values_come_back_and_what_nobody_asks_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CallbacksHandler() as handler:
        handler.checkpoint(tmp_path, model=nn.Linear(2, 2), step=7, best=0.5, note="x", done=False).wait(30)
        assert handler.restore(tmp_path) == {"step": 7, "best": 0.5, "note": "x", "done": False}
    assert "has states that nothing was given for: model" in caplog.text


def test_another_kind_of_optimizer_is_refused_before_anything_is_restored(
    tmp_path: Path,
) -> None:
    model = nn.Linear(2, 1)
    with CallbacksHandler() as handler:
        handler.checkpoint(tmp_path, model=model, optimizers=[torch.optim.Adam(model.parameters())]).wait()
        before = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.add_(1)
        with pytest.raises(ConfigurationError, match=r"optimizers\[0\]: .*another optimizer than SGD: .* have .*betas"):
            handler.restore(tmp_path, model=model, optimizers=[torch.optim.SGD(model.parameters())])
        assert torch.equal(model.weight, before + 1)
        handler.restore(tmp_path, model=model, optimizers=[torch.optim.AdamW(model.parameters())])
        assert torch.equal(model.weight, before)


def test_a_callback_that_nothing_sets_up_in_a_resumed_run_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Opens:
        def on_train_start(self) -> None: ...

    class Counts(Opens):
        def state_dict(self) -> dict[str, Any]:
            return {}

    class Both(Opens):
        def on_resume(self) -> None: ...

    with CallbacksHandler([Opens(), background(Opens(), name="late"), Counts(), Both()]) as handler:
        handler.call_event("on_train_start")
        assert "on_resume" not in caplog.text
        handler.call_event("on_resume")
    told = [one.getMessage().split()[0] for one in caplog.records if "give it on_resume" in one.getMessage()]
    assert told == ["opens", "late"]


class Resumed:
    def on_resume(self) -> None: ...


@pytest.mark.parametrize("callbacks", [[], [Resumed()]])
def test_a_start_after_restore_is_warned_of_once(
    callbacks: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CallbacksHandler(callbacks) as handler:
        handler.checkpoint(tmp_path, step=1).wait()
        handler.restore(tmp_path)
        handler.call_event("on_resume")
        handler.call_event("on_train_start")  # of the next training
        assert "logs begin anew" not in caplog.text
        handler.restore(tmp_path)
        handler.call_event("on_train_start")
        handler.call_event("on_train_start")
        assert caplog.text.count("logs begin anew") == len(callbacks)


def test_waiting_for_one_that_was_skipped_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Waits:
        def on_batch_end(self) -> None:
            gate.wait(60)

    gate = threading.Event()
    with CallbacksHandler([background(Waits())]) as handler:
        handler.call_event("on_batch_end")
        first = handler.checkpoint(tmp_path, step=1)
        second = handler.checkpoint(tmp_path, step=2)
        assert second.skipped
        second.wait()
        assert "was skipped" in caplog.text
        gate.set()
        first.wait(60)
        assert handler.restore(tmp_path) == {"step": 1}
