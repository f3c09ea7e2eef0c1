"""The demo's callbacks, called as an inline handler calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from async_trainer import TrainerState  # noqa: E402
from async_trainer.demo.callbacks import Checkpoints, Figures, MetricsLog  # noqa: E402
from async_trainer.demo.store import Store  # noqa: E402


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_batches(log: MetricsLog, numbers: range) -> None:
    for number in numbers:
        state = TrainerState(stage="training", current_epoch=1, current_train_batch=number)
        log.on_backward_step_start(state=state, loss=torch.tensor(number / 2))


def test_the_log_has_a_row_for_each_batch_on_disk_as_soon_as_the_hook_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_train_start()
    log_batches(log, range(1, 3))
    assert rows(log.path) == [
        {"epoch": 1, "batch": 1, "loss": 0.5},
        {"epoch": 1, "batch": 2, "loss": 1.0},
    ]
    log.on_train_end()


def test_a_resumed_log_goes_on_at_the_offset_of_its_state(tmp_path: Path) -> None:
    before = MetricsLog(tmp_path / "metrics.jsonl")
    before.on_train_start()
    log_batches(before, range(1, 3))
    state = before.state_dict()
    log_batches(before, range(3, 5))
    before.on_exception()

    after = MetricsLog(before.path)
    after.on_resume()
    after.load_state_dict(state)
    log_batches(after, range(3, 4))
    after.on_train_end()
    assert [row["batch"] for row in rows(after.path)] == [1, 2, 3]
    assert after.state_dict() == {"offset": after.path.stat().st_size}


def test_a_log_may_be_loaded_before_its_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"batch": 1}\n{"batch": 2}\n')
    log = MetricsLog(path)
    log.load_state_dict({"offset": 13})
    log.on_resume()
    log_batches(log, range(2, 3))
    log.on_train_end()
    assert [row["batch"] for row in rows(path)] == [1, 2]


def test_a_figure_is_drawn_of_each_validation(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "figures")
    output = {
        "images": torch.rand(20, 1, 8, 8),
        "labels": torch.arange(20) % 10,
        "logits": torch.randn(20, 10),
    }
    for epoch in (1, 2):
        figures.on_validation_start()
        figures.on_metrics_computation_start(output=output)
        figures.on_metrics_computation_start(output=output)
        figures.on_validation_end(state=TrainerState(current_epoch=epoch))
    assert sorted(path.name for path in figures.folder.iterdir()) == ["epoch-001.png", "epoch-002.png"]


def test_checkpoints_hold_the_model_and_its_optimizers(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 1)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    adam.step()
    checkpoints = Checkpoints(Store(tmp_path, latency=0), every=2)
    for step in (1, 2):
        checkpoints.on_optimization_step_end(model=net, optimizers={"adam": adam}, state=TrainerState(optim_step=step))
    checkpoints.on_epoch_end(model=net, optimizers={"adam": adam}, state=TrainerState(current_epoch=1, optim_step=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-001.pt", "step-00002.pt"]
    content = torch.load(tmp_path / "epoch-001.pt", weights_only=True)
    assert content["epoch"] == 1
    assert torch.equal(content["model"]["weight"], net.weight)
    assert torch.equal(content["optimizers"]["adam"]["state"][0]["exp_avg"], adam.state[net.weight]["exp_avg"])


def test_an_object_that_fails_halfway_does_not_appear_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path, latency=0)
    store.put("a.pt", lambda file: file.write(b"old"))

    def fail(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        store.put("a.pt", fail)
    assert (tmp_path / "a.pt").read_bytes() == b"old"


def test_a_store_takes_its_round_trip_and_the_time_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("async_trainer.demo.store.time.sleep", slept.append)
    store = Store(tmp_path, latency=0.1, bandwidth=2e6)
    store.put("a.pt", lambda file: file.write(bytes(1_000_000)))
    assert slept == [pytest.approx(0.6)]
    assert str(store) == "a store 100 ms away, 2 MB/s"
