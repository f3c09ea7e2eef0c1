"""The pages about other people's trainers: their code runs, and they list what a hook sees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from async_trainer.adapters import lightning_trainer
from tests.test_docs import DOCS, ENVIRONMENT, LIMIT

PAGES = {
    "adapters-lightning": "lightning",
    "adapters-huggingface": "transformers",
    "adapters-accelerate": "accelerate",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs_and_prints_what_the_page_says(page: str, tmp_path: Path) -> None:
    pytest.importorskip(PAGES[page])
    text = (DOCS / f"{page}.md").read_text()
    assert f"% not run: needs {PAGES[page]}\n" in text
    (tmp_path / f"{page}.md").write_text(text.replace(f"% not run: needs {PAGES[page]}\n", "\n"))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.test_docs", str(tmp_path / f"{page}.md")],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", [*lightning_trainer.SHOWN, *lightning_trainer.OF_LOGGERS])
def test_what_a_hook_sees_of_lightnings_trainer_is_on_its_page(name: str) -> None:
    assert re.search(rf"`{name}`", (DOCS / "adapters-lightning.md").read_text())
