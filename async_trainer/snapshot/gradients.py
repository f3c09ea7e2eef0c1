"""Gradients, for the hooks that ask for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import capture, leaf, size


class WithGradients:
    """A model that is to be captured with its gradients."""

    __slots__ = ("model",)

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def with_gradients(model: nn.Module) -> Any:
    """For ``select``: capture a model with its gradients. They are copied at the event, by value.

    ::

        background(Histograms(), select={"model": with_gradients})

    The hook gets the replica that it would get otherwise, and each parameter has its ``grad``, where the live one had:
    from ``on_backward_step_end`` to ``on_optimization_step_start``. After the step there are none. (Other hooks that
    get the model of the same event see them, too: it is captured once.)
    """
    return WithGradients(model)


def _take(value: WithGradients, memo: Memo) -> Any:
    """TRAINING THREAD."""
    memo.gradients = True
    try:
        return leaf(value.model, memo)
    finally:
        memo.gradients = False


def _parts(value: WithGradients) -> Iterable[Any]:
    gradients = [parameter.grad for parameter in value.model.parameters() if parameter.grad is not None]
    return [value.model, *gradients]


capture.knows(WithGradients, Kind("replica of the module, with gradients", _take, size, parts=_parts))
