"""The tests of other libraries, with what they test in the background: see .ci/theirs.

    python tests/adapters/theirs.py FOLDER TESTS...    as they are, then in the background; compares what passes

As a plugin of pytest it puts what is tested in the background. On its own path, as their tests have a package "tests".
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

IDENTITY = "compares the engine that a handler got with the live one: it gets a view"
EXPECTED = {
    "test_base_logger::test_attach[": IDENTITY,
    "test_base_logger::test_as_context_manager[": IDENTITY,
    "test_checkpoint::test_checkpoint_on_exception": "the exception is raised, though a handler is told of it",
    "test_tracking.MLflowTrackingTest::test_log_accepts_extra_kwargs": "patches mlflow while log() captures",
}
"""Those that pass inline and fail in the background: the beginnings of their names, and why."""

moved: dict[str, int] = {}
"""What ran in the background, and how often it was put there: none would prove nothing."""


def of_accelerate() -> None:
    """Trackers go to the background as soon as there are any."""
    from accelerate import Accelerator

    from async_trainer.adapters import accelerate

    init_trackers = Accelerator.init_trackers

    @functools.wraps(init_trackers)
    def init_and_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        init_trackers(self, *args, **kwargs)
        if self.trackers:
            for one in self.trackers:
                count(type(one).__name__)
            accelerate.offload(self)

    Accelerator.init_trackers = init_and_offload  # type: ignore[method-assign]


def of_ignite() -> None:
    """Ignite's own handlers go to the background where an engine gets them, its loggers when they are made."""
    import ignite.handlers
    from ignite.engine import Engine
    from ignite.handlers.base_logger import BaseLogger

    from async_trainer.adapters import ignite as adapter

    add = Engine.add_event_handler

    @functools.wraps(add)
    def add_in_background(self: Any, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(handler, "__self__", handler)
        if isinstance(owner, ignite.handlers.Checkpoint):
            handler = adapter.background(handler)
            count(type(owner).__name__)
        return add(self, event_name, handler, *args, **kwargs)

    def make_in_background(cls: type, **kwargs: Any) -> None:
        init: Any = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def init_in_background(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if type(self) is cls:
                adapter.background(self)
                count(cls.__name__)

        cls.__init__ = init_in_background  # type: ignore[misc]

    def below(cls: type) -> Iterator[type]:
        for one in cls.__subclasses__():
            yield one
            yield from below(one)

    Engine.add_event_handler = add_in_background  # type: ignore[method-assign]
    for cls in list(below(BaseLogger)):
        make_in_background(cls)
    BaseLogger.__init_subclass__ = classmethod(make_in_background)  # type: ignore[assignment]


def count(name: str) -> None:
    """Note that ``name`` runs in the background."""
    moved[name] = moved.get(name, 0) + 1


def pytest_configure(config: Any) -> None:
    """Before their tests are imported."""
    {"ignite": of_ignite, "accelerate": of_accelerate}[os.environ["IN_BACKGROUND"]]()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was in the background."""
    there = ", ".join(f"{number} {name}" for name, number in sorted(moved.items()))
    terminalreporter.write_line(f"in the background: {there or 'nothing'}")
    assert moved, "nothing was in the background"


def outcomes(folder: Path, tests: list[str], *options: str) -> dict[str, str]:
    """Run ``tests`` in ``folder``. By test: ``passed``, ``failed`` or ``skipped``."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-W", "ignore"]
    ended = subprocess.run(
        [*command, "-p", "no:async_trainer", f"--junitxml={report}", *options, *tests],
        cwd=folder,
        env={**os.environ, "IN_BACKGROUND": "ignite" if "ignite" in folder.name else "accelerate"}
        | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    print("\n".join(line for line in ended.stdout.splitlines() if "in the background:" in line or " passed" in line))
    assert ended.returncode in (0, 1), ended.stdout
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        how = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname', '').removeprefix('tests.ignite.handlers.').removeprefix('tests.')}"
        found[f"{name}::{case.get('name')}"] = "skipped" if how == {"skipped"} else "failed" if how else "passed"
    return found


def main(folder: Path, tests: list[str]) -> int:
    """Whether what passes inline passes in the background: 0, or 1."""
    inline = outcomes(folder, tests)
    behind = outcomes(folder, tests, "-p", "theirs")
    passed = {name for name, how in inline.items() if how == "passed"}
    worse = {name for name in passed if behind.get(name) != "passed"}
    expected = {name: why for name in sorted(worse) for start, why in EXPECTED.items() if name.startswith(start)}
    print(f"{len(passed)} pass inline, {len(passed - worse)} of them in the background")
    for name, why in expected.items():
        print(f"  {name}: {why}")
    for name in sorted(worse - expected.keys()):
        print(f"  {name}: UNEXPECTED, {behind.get(name)}")
    return 0 if worse == expected.keys() and len(passed) > 20 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
