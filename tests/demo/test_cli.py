"""The command line: what it says, and with which exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from async_trainer import cli
from async_trainer.demo import command
from async_trainer.errors import LaneError


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, async_trainer.cli; print(*{'torch', 'pandas', 'rich', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"]])
def test_help_goes_to_stdout(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_version_names_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("async-trainer ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["dem"], "invalid choice: 'dem'"),
        (["demo", "--epochs", "0"], "--epochs: must be 1 or more, not 0"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--latency", "-1"], "--latency: must be from 0 to 60000, not -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("rich", "sklearn") else object())
    assert cli.main(["demo"]) == 1
    expected = "async-trainer demo: the demo needs rich, scikit-learn: pip install 'async_trainer[demo]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "async-trainer demo: stopped by Ctrl-C\n"),
        (LaneError("the log failed"), 1, "async-trainer demo: the log failed\n"),
        (
            PermissionError(13, "Permission denied", "out"),
            1,
            "async-trainer demo: out: Permission denied\n",
        ),
    ],
)
def test_errors_become_a_line_and_an_exit_status(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Any) -> int:
        raise error

    monkeypatch.setattr(command, "run", fail)
    assert cli.main(["demo"]) == status
    assert capsys.readouterr().err == message


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_a_directory_of_someone_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["demo", "--output", str(tmp_path)]) == 1
    assert "not the demo's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
