"""The pages of the documentation: their code runs and prints what they say, and every public name is on one of them.

A page's ``python`` blocks are run in order, in one namespace, in an empty directory and a process of its own. A line
before a block says what else is to be done with it, as a comment that readers don't see (``%`` in ``docs/``, as HTML in
the README)::

    % not run: needs a GPU              the python block below is left alone
    % script                            the python block below is a script of its own; "% script, status 130": ends so
    % pytest                            the python block below is a file of tests
    % output                            the text block below is what the block before it has printed; "..." is anything
    % output, other numbers             the same, but for the numbers: those of a training depend on the machine

Durations and sizes in bytes may differ from what the page says. Two comments may stand at the top of a page::

    % after callbacks.md                the code of that page is run first
    % with a server of MLflow           one is there, and the environment says where; so with S3
    % with Weights & Biases offline     the environment says so
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import io
import os
import re
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import async_trainer
from async_trainer import callbacks, errors, listeners, testing
from async_trainer.callback import Options
from async_trainer.cli import make_parser
from async_trainer.runtime import stats
from async_trainer.runtime.barrier import Barrier
from tests.callbacks.servers import S3_CLIENT, mlflow_server, s3_server

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if path.exists()]
LONG = {
    "testing",
    "tutorial",
    *(f"howto-{what}" for what in ("callback", "k-fold", "resume", "steer")),
    *(page.stem for page in PAGES if page.stem.startswith("callbacks-")),
}
ERRORS = [name for name, one in vars(errors).items() if inspect.isclass(one) and one.__module__ == errors.__name__]
SHOWN = [cls.__name__ for cls in (stats.Report, stats.Failure, stats.Stats, stats.LaneStats, stats.Waits, Barrier)]
LIMIT = 240.0  # s, for all blocks of a page, on a busy machine
# One thread of torch: several, on a busy machine, wait for each other for minutes.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}

REMARK = re.compile(r"(?:%|<!--) *(?P<text>.*?) *(?:-->)?$")
FENCE = re.compile(r"(?P<ticks>`{3,})(?P<language>\S*)$")
FIRST = re.compile(r"^% after (?P<page>\S+)$", re.MULTILINE)
SERVED = re.compile(r"^% with (?P<what>.+)$", re.MULTILINE)
MEASURED = re.compile(r"\d[\d.,/]*(?= (µs|ms|s|MB)\b)")


@dataclass
class Block:
    """A fenced block of a page. ``line`` is that of its fence, from 1."""

    language: str
    remark: str
    line: int
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.lines)


def read_blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of ``page``, in order, each with the comment right above it."""
    block: Block | None = None
    ticks = remark = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if block is None:
            if fence := FENCE.match(line.rstrip()):
                block, ticks = Block(fence["language"], remark, number), fence["ticks"]
            remark = found["text"] if (found := REMARK.match(line.rstrip())) else ""
        elif line.rstrip() == ticks:
            yield block
            block = None
        else:
            block.lines.append(line)
    assert block is None, f"{page.name}:{block and block.line}: the block has no end"


def run_page(page: Path) -> None:
    """Run the python blocks of ``page``, and compare what they print. In a process of its own."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.stdout = console = io.StringIO()  # one for the page: a log handler that one block makes, others write to
    if first := FIRST.search(page.read_text(encoding="utf-8")):
        run_blocks(page.with_name(first["page"]), module, console)
    run_blocks(page, module, console)


def run_blocks(page: Path, module: types.ModuleType, console: io.StringIO) -> None:
    printed = ""
    for block in read_blocks(page):
        if block.language == "python" and not block.remark.startswith("not run: "):
            if block.remark.startswith("script"):
                printed = run_file(block, page)
                continue
            if block.remark == "pytest":
                # The plugin by its module: the package may be on the path only, and not installed.
                plugins = ("no:async_trainer", "async_trainer.pytest_plugin", "no:cacheprovider")
                printed = run_file(block, page, "-m", "pytest", *(f"-p{plugin}" for plugin in plugins))
                continue
            start = console.tell()
            code = compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True)
            exec(code, vars(module))
            printed = console.getvalue()[start:]
        elif block.remark in ("output", "output, other numbers"):
            compare(block, printed, page)


@contextmanager
def served(page: Path, folder: Path) -> Iterator[dict[str, str]]:
    """What ``page`` is to be run with; yields what its environment says of it."""
    found = SERVED.search(page.read_text(encoding="utf-8"))
    match found and found["what"]:
        case None:
            yield {}
        case "a server of MLflow":
            pytest.importorskip("sqlalchemy")
            with mlflow_server(folder) as url:
                yield {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        case "a server of S3":
            with s3_server() as url:
                yield {**S3_CLIENT, "AWS_ENDPOINT_URL": url}
        case "Weights & Biases offline":
            folders = {f"WANDB_{name}_DIR": str(folder) for name in ("CONFIG", "CACHE", "DATA")}
            yield {**folders, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        case what:
            raise AssertionError(f"{page.name}: {what!r} is not known")


def run_file(block: Block, page: Path, *how: str) -> str:
    """Run ``block`` as a file of its own. Returns what it has printed, errors included."""
    Path("train.py").write_text(block.text, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-u", *how, "train.py"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    _, _, status = block.remark.partition("status ")
    assert ended.returncode == int(status or 0), (
        f"{page.name}:{block.line}: it ends with status {ended.returncode}, not {status or 0}\n{ended.stdout}"
    )
    return ended.stdout


def compare(block: Block, printed: str, page: Path) -> None:
    """Fail where ``printed`` is not what ``block`` says."""
    wanted, got = comparable(block.text), comparable(printed)
    if block.remark != "output":
        wanted, got = (re.sub(r"\d+(\.\d+)?", "#", re.sub(r" +", " ", text)) for text in (wanted, got))
    if not doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS):
        raise AssertionError(f"{page.name}:{block.line}: it does not print\n{block.text}but\n{printed}")


def comparable(text: str) -> str:
    """``text`` without measured numbers, and without the room that they take in tables."""
    text = re.sub(r"-{3,}", "---", MEASURED.sub("#", text))
    return "".join(re.sub(r" {2,}", "  ", line).rstrip() + "\n" for line in text.strip("\n").splitlines())


def code_of(*pages: Path) -> str:
    """All code of ``pages``: blocks, and words in backticks."""
    return "\n".join(code for page in pages for code in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES]
)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if all(block.language != "python" or block.remark.startswith("not run: ") for block in read_blocks(page)):
        return  # nothing to run here: a page of words, or of a library that may not be installed
    with served(page, tmp_path_factory.mktemp("served")) as environment:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.test_docs", str(page)],
            cwd=tmp_path,
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
    assert ended.returncode == 0, ended.stdout


LISTED = (async_trainer, callbacks, listeners, testing)
NAMES = {*(name for one in LISTED for name in one.__all__), *ERRORS, *SHOWN, "callbacks_handler"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"\b{name}\b", (DOCS / "reference.md").read_text())


def names_of_members(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_") and name != "after_fork"]


@pytest.mark.parametrize("name", names_of_members(async_trainer.CallbacksHandler))
def test_every_method_of_the_handler_is_explained(name: str) -> None:
    assert re.search(rf"\b{name}\b", code_of(*DOCS.glob("*.md")))


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_callback_is_in_the_readme(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", names_of_members(async_trainer.Trainer))
def test_every_method_of_the_trainer_is_in_the_reference(name: str) -> None:
    assert re.search(rf"\b{name}\b", (DOCS / "reference.md").read_text())


HANDLER_OPTIONS = list(inspect.signature(async_trainer.CallbacksHandler).parameters)


@pytest.mark.parametrize("option", sorted({*Options.__dataclass_fields__, *HANDLER_OPTIONS}))
def test_every_option_is_explained(option: str) -> None:
    assert re.search(rf"`{option}`|\b{option}=", code_of(*DOCS.glob("*.md")))


@pytest.mark.parametrize("field", [*stats.Report.__dataclass_fields__, *stats.LaneStats.__dataclass_fields__])
def test_every_count_is_explained(field: str) -> None:
    assert re.search(rf"\b{field}\b", code_of(*DOCS.glob("*.md")))


def words_of(parser: argparse.ArgumentParser, command: str) -> Iterator[str]:
    """The commands and options of a command line."""
    yield command
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from words_of(subparser, f"{command} {name}")
        elif action.metavar and action.option_strings:
            yield f"{action.option_strings[-1]} {action.metavar}"


@pytest.mark.parametrize("word", sorted(set(words_of(make_parser(), "async-trainer"))))
def test_every_command_and_option_is_on_the_page_of_the_command_line(word: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", code_of(DOCS / "cli.md"))


def test_the_first_page_shows_the_loop_of_the_readme() -> None:
    pages = (ROOT / "README.md", DOCS / "index.md")
    readme, index = (next(block.text for block in read_blocks(page) if block.language == "python") for page in pages)
    assert index == readme


def test_the_pages_are_all_in_the_table_of_contents() -> None:
    contents = (DOCS / "index.md").read_text().partition("{toctree}")[2].split()
    assert {page.stem for page in DOCS.glob("*.md")} - set(contents) == {"index"}


# The checks check: pages that say what is not so.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nprint(1)\n```\n\n% output\n```text\n2\n```\n", "page.md:6: it does not print\n2\nbut\n1\n"),
        ("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n", "page.md:6: it does not print"),
        ("```python\nprint('1 a')\n```\n% output, other numbers\n```text\n2 b\n```\n", "page.md:5: it does not print"),
        ("text\n\n```python\n1 / 0\n```\n", 'page.md", line 4, in <module>\n'),
        ("% script, status 3\n```python\nraise SystemExit(4)\n```\n", "page.md:2: it ends with status 4, not 3"),
    ],
)
def test_a_page_that_says_what_is_not_so_is_found(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)) as raised:
        run_text(text, tmp_path, monkeypatch)
    assert message in "".join(traceback.format_exception(raised.value))


def test_a_page_that_says_what_is_so_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_text(
        "% not run: for the reader\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n\n"
        "```python\nprint(x)\nprint('took', 12.5, 's')\n```\n\n% output\n```text\n1\ntook 3.25 s\n```\n"
        "% script\n```python\nprint('a b c')\n```\n\n% output\n```text\na ... c\n```\n"
        "```python\nprint('a   0.95   9')\n```\n\n% output, other numbers\n```text\na   0.9   12\n```\n",
        tmp_path,
        monkeypatch,
    )


def test_a_page_that_comes_after_another_has_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first.md").write_text("```python\nx = 1\n```\n")
    shows = "```python\nprint(x)\n```\n\n% output\n```text\n1\n```\n"
    run_text("% after first.md\n" + shows, tmp_path, monkeypatch)
    with pytest.raises(NameError):
        run_text(shows, tmp_path, monkeypatch)


def test_a_page_that_wants_what_there_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("% with a server of coffee\n")
    with (
        pytest.raises(AssertionError, match=r"page.md: .a server of coffee. is not known"),
        served(tmp_path / "page.md", tmp_path),
    ):
        pass


def run_text(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page of ``text``, in this process."""
    page = folder / "page.md"
    page.write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    run_page(page)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
