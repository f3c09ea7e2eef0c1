"""What importing and using the snapshot layer loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import async_trainer.snapshot

FOLDER = Path(async_trainer.snapshot.__file__).parent
HEAVY = {"torch", "pandas", "numpy"}


def modules_after(code: str) -> set[str]:
    script = f"import sys\nfrom async_trainer.snapshot import *\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def loaded_after(code: str) -> set[str]:
    return modules_after(code) & HEAVY


def leaf_files_after(code: str) -> set[str]:
    return {name.rpartition(".")[2] for name in modules_after(code) if "snapshot." in name}


def test_importing_it_loads_none_of_the_heavy_libraries() -> None:
    assert loaded_after("") == set()


def test_capturing_plain_values_and_objects_loads_none_of_them() -> None:
    code = """
import dataclasses, types, logging
@dataclasses.dataclass
class State: epoch: int = 1
class Plain: ...
value = {'a': [1, (2, {3})], 's': State(), 'p': Plain(), 'n': types.SimpleNamespace(x=[1])}
assert capture(value)['n'].x == [1]
size(value); keep(value); held_by(Plain(), [value])
"""
    assert loaded_after(code) == set()


def test_a_library_that_is_loaded_is_met_only_with_one_of_its_values() -> None:
    assert leaf_files_after("import numpy; capture([1])").isdisjoint({"arrays", "frames", "tensors"})
    after = leaf_files_after("import numpy; capture([numpy.ones(2)])")
    assert "arrays" in after
    assert after.isdisjoint({"frames", "tensors"})


def test_a_users_package_named_like_one_is_not_taken_for_it() -> None:
    code = """
import types
module = types.ModuleType('torch'); sys.modules['torch'] = module
exec('class Odd: ...', module.__dict__)
module.Odd.__module__ = 'pandas.fake'
value = module.Odd(); value.x = [1]
assert capture(value).x == [1]
del sys.modules['torch']
"""
    assert loaded_after(code) == set()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_layer_imports_nothing_of_the_package_but_errors(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.split(".")[0] == "async_trainer":
                neutral = ("async_trainer.errors", "async_trainer.gate")
                assert name in neutral or name.startswith("async_trainer.snapshot.")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250
