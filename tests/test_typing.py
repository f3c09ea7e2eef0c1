"""The public interface under mypy and pyright, both strict: what users write passes, what can't work is an error."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import async_trainer

ROOT = Path(__file__).parents[1]
RIGHT = ROOT / "tests/typing/api.py"
WRONG = ROOT / "tests/typing/wrong.py"

Errors = Mapping[Path, Mapping[int, str]]  # file -> line -> message


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: there are errors
    return done.stdout


def run_mypy() -> Errors:
    errors: dict[Path, dict[int, str]] = {RIGHT: {}, WRONG: {}}
    for line in run("mypy", "--strict", str(RIGHT), str(WRONG)).splitlines():
        if found := re.fullmatch(r"(.*?):(\d+): error: (.*)", line):
            errors.setdefault(ROOT / found[1], {})[int(found[2])] = found[3]
    return errors


def run_pyright() -> Errors:
    errors: dict[Path, dict[int, str]] = {RIGHT: {}, WRONG: {}}
    told = json.loads(run("pyright", "--pythonpath", sys.executable, "--outputjson", str(RIGHT), str(WRONG)))
    for one in told["generalDiagnostics"]:
        if one["severity"] == "error":
            errors.setdefault(Path(one["file"]), {})[one["range"]["start"]["line"] + 1] = one["message"]
    return errors


@pytest.fixture(
    scope="module",
    params=[pytest.param(run_mypy, marks=pytest.mark.slow, id="mypy"), pytest.param(run_pyright, id="pyright")],
)
def errors(request: pytest.FixtureRequest) -> Errors:
    checker = request.param.__name__.removeprefix("run_")
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    found: Errors = request.param()
    return found


def marked() -> set[int]:
    return {number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if "  # E:" in line}


def test_what_users_write_has_no_error(errors: Errors) -> None:
    assert errors[RIGHT] == {}


def test_each_marked_mistake_is_an_error_and_no_other_line_is(errors: Errors) -> None:
    seen = errors[WRONG]
    assert {line: seen.get(line, "no error") for line in marked() ^ set(seen)} == {}
    assert len(marked()) > 50


def test_the_package_itself_has_no_error_as_users_see_it(errors: Errors) -> None:
    assert set(errors) == {RIGHT, WRONG}


def test_each_name_of_the_root_is_used_where_it_is_checked() -> None:
    text = RIGHT.read_text()
    assert [name for name in async_trainer.__all__ if not re.search(rf"async_trainer\.{name}\b", text)] == []
