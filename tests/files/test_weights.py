"""Weights in files: what goes in comes out, in both formats, and a file that can't be read is never written."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from async_trainer.errors import ConfigurationError
from async_trainer.files import weights as module
from async_trainer.files.weights import DamagedFileError, load_weights, save_weights
from async_trainer.testing.check import equal


@pytest.fixture(params=["pt", "safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"a.{request.param}"


def back(path: Path, weights: dict[str, Any]) -> dict[str, Any]:
    save_weights(path, weights, {})
    return load_weights(path)[0]


def test_tensors_of_all_kinds_come_back(path: Path) -> None:
    weights = {
        "matrix": torch.randn(3, 4),
        "scalar": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "other empty": torch.empty(0),
        "column": torch.arange(6.0).view(2, 3).t(),
        "expanded": torch.ones(1).expand(4),
    }
    assert equal(dict(sorted(back(path, weights).items())), dict(sorted(weights.items())))


def test_what_is_said_about_them_comes_back_plain_and_readable(path: Path) -> None:
    save_weights(path, {"a": torch.ones(1)}, {"epoch": 3, "metrics": {"loss": np.float64(0.5), "nan": math.nan}})
    about = load_weights(path)[1]
    assert about["epoch"] == 3
    assert type(about["metrics"]["loss"]) is float
    assert math.isnan(about["metrics"]["nan"])


def test_tied_weights_stay_tied_and_are_written_once(path: Path) -> None:
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    save_weights(path, net.state_dict(), {})
    untied = path.stat().st_size
    net[1].weight = net[0].weight
    weights = back(path, net.state_dict())
    assert weights["0.weight"].data_ptr() == weights["1.weight"].data_ptr()
    assert path.stat().st_size < 0.6 * untied
    other = copy.deepcopy(net)
    nn.init.zeros_(other[0].weight)
    other.load_state_dict(weights)
    assert torch.equal(other[1].weight, net[0].weight)


def test_of_a_view_only_what_it_shows_is_written(path: Path) -> None:
    whole = torch.randn(1_000_000)
    weights = back(path, {"head": whole[:3], "again": whole[:3], "tail": whole[-2:]})
    assert torch.equal(weights["head"], whole[:3])
    assert torch.equal(weights["tail"], whole[-2:])
    assert weights["again"].data_ptr() == weights["head"].data_ptr()
    assert path.stat().st_size < 10_000


def test_views_that_overlap_have_their_values(path: Path) -> None:
    whole = torch.arange(6.0)
    weights = back(path, {"whole": whole, "part": whole[2:4], "turned": whole.view(2, 3).t()})
    assert torch.equal(weights["whole"], whole)
    assert torch.equal(weights["part"], whole[2:4])
    assert torch.equal(weights["turned"], whole.view(2, 3).t())


def test_saving_changes_nothing(path: Path) -> None:
    net = nn.Linear(2, 2)
    before = copy.deepcopy(net.state_dict())
    save_weights(path, net.state_dict(), {})
    assert equal(dict(net.state_dict()), dict(before))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_told_apart(path: Path, kept: float) -> None:
    save_weights(path, {"a": torch.randn(1000)}, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DamagedFileError, match=path.name):
        load_weights(path)


def test_a_file_of_something_else_is_told_apart(path: Path) -> None:
    if path.suffix == ".pt":
        contents: list[Any] = [[1], {"weights": [1], "about": {}}, {"a": torch.ones(1)}]
    else:
        contents = [{"a": torch.ones(1)}]
    for content in contents:
        if path.suffix == ".pt":
            torch.save(content, path)
        else:
            pytest.importorskip("safetensors.torch").save_file(content, path)
        with pytest.raises(DamagedFileError, match=path.name):
            load_weights(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


def test_reading_runs_no_code_and_advises_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    torch.save({"weights": Evil(), "about": {}}, path)
    with pytest.raises(DamagedFileError, match="other things than tensors and plain values") as raised:
        load_weights(path)
    assert "weights_only" not in str(raised.value)
    assert "this ran" not in capsys.readouterr().out


def test_what_could_not_be_read_back_is_not_written(path: Path) -> None:
    for weights, about in (
        ({"extra": np.ones(3)}, {}),
        ({"extra": Evil()}, {}),
        ({"a": torch.ones(1)}, {"path": Path("a")}),
    ):
        with pytest.raises(ConfigurationError, match=path.name):
            save_weights(path, weights, about)
    assert not list(path.parent.iterdir())


def test_a_pt_holds_what_else_a_state_dict_has(tmp_path: Path) -> None:
    extra = {"steps": 3, "history": [1.0, 2.0]}
    assert back(tmp_path / "a.pt", {"_extra_state": extra, "a": torch.ones(1)})["_extra_state"] == extra


def test_a_sparse_tensor_goes_into_a_pt_only(path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    if path.suffix == ".pt":
        assert torch.equal(back(path, {"a": sparse})["a"].to_dense(), torch.eye(3))
        return
    with pytest.raises(ConfigurationError, match=r"a is no dense tensor.*use \.pt"):
        save_weights(path, {"a": sparse}, {})


def test_other_endings_are_refused_and_a_missing_file_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.pth.*\.pt or \.safetensors"):
        save_weights(tmp_path / "a.pth", {}, {})
    with pytest.raises(ConfigurationError, match=r"a\.pth"):
        load_weights(tmp_path / "a.pth")
    for suffix in module.SUFFIXES:
        with pytest.raises(FileNotFoundError):
            load_weights(tmp_path / f"a{suffix}")


def test_without_safetensors_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'async_trainer\[safetensors\]'"):
        save_weights(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
