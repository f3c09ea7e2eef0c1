"""The command ``async-trainer explain``: what a callback gets, captured how, and what that costs."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from async_trainer.callback import Background, Inline
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import suggestion

NAME = "explain"
HELP = "show what a callback gets, captured how, and what that costs the loop"

_DESCRIPTION = """\
Rehearses a training of a tiny model with the callback, and prints a row for each of its hooks: where it runs, what it
gets, captured how, and the loop's time for each event. A class or a function is called without arguments to make it.
A callback that is not wrapped in background(...), nor asks for it, is shown inline; --background shows it there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "callback", nargs="+", metavar="MODULE:CALLBACK", help="such as my_callbacks:Plots, or plots.py:make"
    )
    parser.add_argument("--background", action="store_true", help="wrap what isn't wrapped in background(...)")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="of the rehearsal (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ConfigurationError: there is no such callback, or it can't work.
    """
    from async_trainer import CallbacksHandler, background
    from async_trainer.testing import play

    found = [make(target, load(target)) for target in arguments.callback]
    if arguments.background:
        found = [one if isinstance(one, (Background, Inline, list, tuple)) else background(one) for one in found]
    if arguments.epochs < 1:
        raise ConfigurationError(f"--epochs must be 1 or more, not {arguments.epochs}")
    with CallbacksHandler(found) as handler:
        play(handler, epochs=arguments.epochs)
        print(handler.explain())
        print(f"\n{handler.stats()}")
        failures = handler.flush().errors
    return 1 if failures else 0


def load(target: str) -> Any:
    """What ``module:name`` names, or ``file.py:name``; the module is looked for in the current directory too.

    Raises:
        ConfigurationError: there is none.
    """
    module_name, _, name = target.rpartition(":")
    if not module_name or not name:
        raise ConfigurationError(f"{target!r}: give a module and a callback in it: my_callbacks:Plots, plots.py:make")
    if module_name.endswith(".py"):
        return attribute(target, _of_file(target, Path(module_name)), name)
    sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise
        raise ConfigurationError(f"{target!r}: there is no module {module_name!r} here") from None
    finally:
        sys.path.pop(0)
    return attribute(target, module, name)


def _of_file(target: str, path: Path) -> ModuleType:
    """The module of a file, of a name that is no other's."""
    name = f"async_trainer_file_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigurationError(f"{target!r}: there is no file {str(path)!r}")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.absolute().parent))  # as where it is run
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path.pop(0)
    return sys.modules[name]


def attribute(target: str, module: Any, name: str) -> Any:
    """``module.name``; ``target`` is what the user gave, for the message.

    Raises:
        ConfigurationError: the module has none.
    """
    if not hasattr(module, name):
        raise ConfigurationError(
            f"{target!r}: {target.rpartition(':')[0]} has no {name!r}{suggestion(name, dir(module))}"
        )
    return getattr(module, name)


def make(target: str, found: Any) -> Any:
    """A callback of what was found: classes and functions are called without arguments to make it.

    Raises:
        ConfigurationError: it can't be made so.
    """
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return found
    try:
        return found()
    except TypeError as error:
        raise ConfigurationError(
            f"{target!r} can't be made without arguments ({error}); name an instance, or a function that makes one"
        ) from error
