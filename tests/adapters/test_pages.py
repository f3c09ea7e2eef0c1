"""The pages about other people's trainers: their code runs, and they list what a hook sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from async_trainer.adapters import huggingface, lightning_trainer
from tests.adapters.pages import run_page
from tests.test_docs import DOCS

OF_IGNITE = ("engine", "engine.state", "engine.state.batch", "engine.state.dataloader")
OF_CLINICADL = (
    "model", "state", "metrics", "optimizers", "grad_scaler", "loss", "batch", "output", "detailed_metrics_df", "maps",
    "split", "dataloader", "callbacks", "exception", "model_checkpoint", "group_name",
)  # fmt: skip
PAGES = {
    "adapters-lightning": "lightning",
    "adapters-huggingface": "transformers",
    "adapters-accelerate": "accelerate",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs_and_prints_what_the_page_says(page: str, tmp_path: Path) -> None:
    pytest.importorskip(PAGES[page])
    run_page(page, PAGES[page], tmp_path)


@pytest.mark.parametrize("name", [*lightning_trainer.SHOWN, *lightning_trainer.OF_LOGGERS])
def test_what_a_hook_sees_of_lightnings_trainer_is_on_its_page(name: str) -> None:
    assert re.search(rf"`{name}`", (DOCS / "adapters-lightning.md").read_text())


@pytest.mark.parametrize(
    ("page", "name"),
    [
        *(("adapters-huggingface", name) for name in (*huggingface.NAMES, *huggingface.OFFERED, *huggingface.FREE)),
        *(("adapters-ignite", name) for name in OF_IGNITE),
        *(("adapters-clinicadl", name) for name in OF_CLINICADL),
    ],
)
def test_what_a_hook_gets_is_in_the_table_of_its_page(page: str, name: str) -> None:
    table = [line.split("|")[1] for line in (DOCS / f"{page}.md").read_text().splitlines() if line.startswith("| ")]
    assert any(f"`{name}`" in first or f".{name}`" in first for first in table)


@pytest.mark.parametrize("page", ["lightning", "huggingface", "ignite", "clinicadl"])
def test_each_page_says_what_is_refused_and_what_a_hook_sees(page: str) -> None:
    text = (DOCS / f"adapters-{page}.md").read_text()
    assert re.search(r"^## What a (hook|handler) sees", text, re.MULTILINE)
    assert "refused" in text
