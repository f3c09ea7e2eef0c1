"""Running the code of a page about another trainer, which the other pages' tests leave alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.test_docs import DOCS, ENVIRONMENT, LIMIT


def run_page(page: str, needed: str, folder: Path) -> None:
    """Fail where a block of ``page`` that is marked as needing ``needed`` does not print what follows as its output."""
    mark = f"% not run: needs {needed}\n"
    text = (DOCS / f"{page}.md").read_text()
    assert mark in text
    (folder / f"{page}.md").write_text(text.replace(mark, "\n").replace("% its output", "% output"))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.test_docs", str(folder / f"{page}.md")],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert ended.returncode == 0, ended.stdout
