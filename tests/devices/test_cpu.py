"""Where all tensors are the CPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.snapshot import devices


def test_nobody_looks_for_an_accelerator_before_a_tensor_is_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(devices, "accelerator_kind", lambda: looked.append(True))  # finds none
    seen: list[str] = []

    class Logs:
        def on_batch_end(self, *, model: Any, loss: Any) -> None:
            seen.append(f"{next(model.parameters()).device} {loss.device}")

    with CallbacksHandler([background(Logs())]) as handler:
        model = torch.nn.Linear(200, 200)
        handler.call_event("on_batch_end", model=model, loss=torch.tensor(1.0))
        assert looked == []
        handler.call_event("on_batch_end", model=model, loss=torch.tensor(1.0, device="meta"))
        assert looked == [True]
    assert seen == ["cpu cpu", "cpu meta"]
