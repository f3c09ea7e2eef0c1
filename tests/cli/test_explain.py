"""``async-trainer explain``: what a callback gets, captured how."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from async_trainer import cli

CALLBACKS = """
from async_trainer import background

class Plots:
    def on_validation_end(self, *, model, metrics, state): model.state_dict()

class Needs:
    def __init__(self, path): ...
    def on_batch_end(self, *, state): ...

class Fails:
    def on_batch_end(self, *, state): raise ValueError("no disk")

def make(): return [background(Plots(), name="first"), Plots()]

plots = Plots()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"callbacks_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CALLBACKS)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("what", ["Plots", "plots"])
def test_it_shows_what_a_class_or_an_instance_gets(what: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"{module}:{what}", "--background"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("plots"))
    assert "on_validation_end" in row
    assert "model: replica of the module; metrics: copied, frozen; state: copied, frozen" in row
    assert "µs to capture" in row
    assert "2" in next(line for line in out.splitlines() if line.startswith("plots  thread")).split()


def test_a_file_is_a_module_too(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"{module}.py:Plots"]) == 0
    assert "plots     on_validation_end  inline" in capsys.readouterr().out
    assert cli.main(["explain", f"{module}.py:Polts"]) == 1
    assert f"{module}.py has no 'Polts'; did you mean 'Plots'?" in capsys.readouterr().err


def test_a_file_finds_what_is_beside_it_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"beside_{tmp_path.name}.py").write_text(CALLBACKS)
    (tmp_path / f"imports_{tmp_path.name}.py").write_text(f"from beside_{tmp_path.name} import Plots")
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert cli.main(["explain", f"{tmp_path}/imports_{tmp_path.name}.py:Plots"]) == 0
    assert sys.path == before


def test_a_function_may_make_several_and_what_is_not_wrapped_is_inline(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", f"{module}:make"]) == 0
    out = capsys.readouterr().out
    assert "first" in out
    assert "inline  model, metrics, state (live)" in " ".join(out.split()).replace("inline model", "inline  model")


def test_a_callback_that_fails_gives_the_status_1(module: str) -> None:
    assert cli.main(["explain", f"{module}:Fails", "--background"]) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("plots", "give a module and a callback in it"),
        ("no_such_module:Plots", "there is no module 'no_such_module'"),
        ("{module}:Plot", "did you mean 'Plots'"),
        ("{module}:Needs", "can't be made without arguments"),
    ],
)
def test_what_can_t_be_found_is_named(
    target: str, message: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", target.format(module=module)]) == 1
    assert message in capsys.readouterr().err
