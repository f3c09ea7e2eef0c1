"""The events against a table made from the specification (``data/events.json``), and the laziness of imports."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import async_trainer
from async_trainer import Callback, Event
from async_trainer.events import ARGUMENTS, EVALUATION_STARTS, ONCE_PER_RUN, RUN_ENDS, RUN_STARTS, TRAINING_STARTS

PACKAGE = Path(async_trainer.__file__).parent
SPECIFIED: dict[str, list[str]] = json.loads((Path(__file__).parent / "data/events.json").read_text())

each_event = pytest.mark.parametrize("event", list(Event), ids=str)


def test_the_events_are_those_of_the_specification() -> None:
    assert len(SPECIFIED) == 23
    assert {event.value for event in Event} == set(SPECIFIED)


@each_event
def test_an_event_brings_what_the_specification_says(event: Event) -> None:
    assert list(event.arguments) == SPECIFIED[event]


@each_event
def test_a_member_is_called_as_its_hook_is(event: Event) -> None:
    assert event.value == f"on_{event.name.lower()}"
    assert event == event.value
    assert Event(event.value) is event
    assert event.summary.endswith(".")


def test_every_argument_is_described_and_no_other() -> None:
    assert set(ARGUMENTS) == {name for names in SPECIFIED.values() for name in names}


@each_event
def test_the_loop_in_the_docstring_fires_the_event(event: Event) -> None:
    assert re.search(rf"\b{event}\b", Event.__doc__ or "")


def test_the_loop_in_the_docstring_fires_nothing_else() -> None:
    assert set(re.findall(r"\bon_\w+", Event.__doc__ or "")) == set(SPECIFIED)


@each_event
def test_the_base_class_documents_the_hook_and_its_arguments(event: Event) -> None:
    hook = getattr(Callback, event)
    assert hook.__name__ == event
    assert hook.__qualname__ == f"Callback.{event}"
    first, *rest = hook.__doc__.splitlines()
    assert first == event.summary
    named = [found[1] for line in rest if (found := re.match(r"    (\w+): \S", line))]
    assert named == SPECIFIED[event]


@each_event
def test_the_hook_of_the_base_class_does_nothing_whatever_it_is_given(event: Event) -> None:
    hook: Any = getattr(Callback(), event)
    assert hook() is None
    assert hook(state=1, anything=2) is None


def test_the_base_class_has_no_other_hooks() -> None:
    assert {name for name in dir(Callback) if name.startswith("on_")} == set(SPECIFIED)


def test_sets_of_events_hold_what_their_names_say() -> None:
    assert sorted(RUN_STARTS) == ["on_resume", "on_test_start", "on_train_start", "on_validate_start"]
    assert sorted(RUN_ENDS) == ["on_exception", "on_test_end", "on_train_end", "on_validate_end"]
    assert set(Event) - ONCE_PER_RUN == set(Event) - RUN_STARTS - RUN_ENDS - {"on_trainer_init"}
    assert not EVALUATION_STARTS & TRAINING_STARTS


# ------------------------------------------------------------------------------------------ nothing lists events twice


def named_event(node: ast.AST) -> str | None:
    """The event that an expression names, as text or as ``Event.X``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in SPECIFIED:
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Event":
        return f"on_{node.attr.lower()}"
    return None


def lists_of_events(tree: ast.AST) -> Iterator[set[str]]:
    """What each literal container, each run of assignments and each class body of ``tree`` names of events."""
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            parts = list(node.elts)
        elif isinstance(node, ast.Dict):
            parts = [part for part in (*node.keys, *node.values) if part is not None]
        found = {event for part in parts if (event := named_event(part))}
        if isinstance(node, (ast.ClassDef, ast.Module)):
            functions = [part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
            found |= {function.name for function in functions if function.name in SPECIFIED and not reads(function)}
        if found:
            yield found


def reads(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it does something: the hooks of a callback are no list of events."""
    return any(isinstance(node, ast.Call | ast.Assign | ast.AugAssign) for node in ast.walk(function))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_lists_the_events_a_second_time(path: Path) -> None:
    longest = max(lists_of_events(ast.parse(path.read_text())), key=len, default=set())
    assert len(longest) < len(SPECIFIED) / 2


def test_each_event_is_written_once_where_it_is_defined() -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse((PACKAGE / "events.py").read_text()))
        if isinstance(node, ast.Constant)
    ]
    assert sorted(text for text in texts if text in SPECIFIED) == sorted(SPECIFIED)


# ---------------------------------------------------------------------------------------------------------- laziness


def loaded_by(statement: str) -> set[str]:
    """The root packages that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import async_trainer") & {"torch", "pandas", "numpy", "anyio", "cloudpickle", "logging"}


def test_writing_a_callback_loads_neither_torch_nor_pandas_nor_anyio() -> None:
    statement = "from async_trainer import Event, Callback, background, inline, AsyncTrainerError"
    assert not loaded_by(statement) & {"torch", "pandas", "numpy", "anyio"}


def test_a_loop_without_torch_runs_without_torch() -> None:
    loop = """
from async_trainer import CallbacksHandler, TrainerState, background, capture, keep
class Rows:
    def __init__(self): self.rows = []
    def on_batch_end(self, *, state, loss, **kwargs): self.rows.append(loss)
rows = Rows()
with CallbacksHandler([background(rows)]) as handler:
    handler.call_event("on_batch_end", state=TrainerState(), loss=0.5)
assert rows.rows == [0.5]
"""
    loaded = loaded_by(loop)
    assert "anyio" in loaded
    assert not loaded & {"torch", "pandas", "numpy"}


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in async_trainer.__all__:
        assert getattr(async_trainer, name).__doc__
    assert set(async_trainer.__all__) <= set(dir(async_trainer))
    assert {name for name in dir(async_trainer) if not name.startswith("_")} >= set(async_trainer.__all__)


def test_an_unknown_name_is_an_attribute_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'async_trainer' has no attribute 'Calback'"):
        _ = getattr(async_trainer, "Calback")  # noqa: B009
    with pytest.raises(ImportError, match="Calback"):
        exec("from async_trainer import Calback")
