"""async_trainer.callbacks: names that are loaded when they are used."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import async_trainer.callbacks


def test_importing_it_loads_neither_torch_nor_pandas() -> None:
    check = "import sys, async_trainer.callbacks; sys.exit(bool({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0


def test_a_name_that_it_lacks_is_an_attribute_error() -> None:
    assert "EarlyStopping" in dir(async_trainer.callbacks)
    with pytest.raises(AttributeError, match=r"module 'async_trainer\.callbacks' has no attribute 'EarlyStoping'"):
        async_trainer.callbacks.EarlyStoping  # noqa: B018


@pytest.mark.parametrize(
    ("make", "module"),
    [
        ("Webhook('http://127.0.0.1:1/')", "httpx"),
        ("Upload('s3://bucket', options={'endpoint_url': 'http://127.0.0.1:1'})", "s3fs"),
    ],
)
def test_what_draws_when_it_is_imported_is_imported_before_the_training_and_draws_nothing(
    make: str, module: str
) -> None:
    script = f"""
        import random, sys
        from async_trainer.callbacks import Upload, Webhook
        random.seed(1)
        before = random.getstate()
        {make}
        assert random.getstate() == before
        assert {module!r} in sys.modules
        import rich.style
        assert random.getstate() == before, "what draws was not imported"
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
