"""async_trainer.callbacks: names that are loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import async_trainer.callbacks


def test_importing_it_loads_neither_torch_nor_pandas() -> None:
    check = "import sys, async_trainer.callbacks; sys.exit(bool({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0


def test_a_name_that_it_lacks_is_an_attribute_error() -> None:
    assert "EarlyStopping" in dir(async_trainer.callbacks)
    with pytest.raises(AttributeError, match=r"module 'async_trainer\.callbacks' has no attribute 'EarlyStoping'"):
        async_trainer.callbacks.EarlyStoping  # noqa: B018
