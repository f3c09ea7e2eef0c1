"""The live objects of an event, overwritten in place: what a hook sees of that is no snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import nn

from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.state import TrainerState

Undo = Callable[[], None]


@contextmanager
def overwritten(arguments: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Gives a function that overwrites the live objects of an event; they are put back on leaving."""
    undo: list[Undo] = []

    def overwrite() -> None:
        for value in arguments.values():
            undo.extend(_overwrite(value))

    try:
        yield overwrite
    finally:
        for put_back in reversed(undo):
            put_back()


def _overwrite(value: Any) -> Iterator[Undo]:
    if isinstance(value, torch.Tensor):
        yield _overwrite_tensor(value)
    elif isinstance(value, nn.Module):
        yield from _overwrite_all([*value.parameters(), *value.buffers()])
    elif isinstance(value, torch.optim.Optimizer):
        yield from _overwrite_all(state for states in value.state.values() for state in states.values())
    elif isinstance(value, TrainerState):
        before = dict(vars(value))
        vars(value).update(dict.fromkeys(before, -1))
        yield lambda: vars(value).update(before)
    elif isinstance(value, MetricsHandler):
        results = {name: vars(value)[name] for name in ("_rows", "_details", "_seen")}
        vars(value).update(_rows=[dict.fromkeys(value.names, -1.0)], _details=[], _seen=-1)
        yield lambda: vars(value).update(results)
    elif isinstance(value, pd.DataFrame):
        yield _overwrite_frame(value)
    elif isinstance(value, dict):
        yield from _overwrite_all(value.values())
        items = dict(value)
        value.clear()
        yield lambda: value.update(items)
    elif isinstance(value, (list, tuple)):
        yield from _overwrite_all(value)


def _overwrite_all(values: Iterable[Any]) -> Iterator[Undo]:
    for value in list(values):
        yield from _overwrite(value)


def _overwrite_tensor(tensor: torch.Tensor) -> Undo:
    before = tensor.detach().clone()
    tensor.data.fill_(-1)  # through .data: autograd, which may still need the value, must not take notice

    def put_back() -> None:
        tensor.data.copy_(before)

    return put_back


def _overwrite_frame(frame: pd.DataFrame) -> Undo:
    before = frame.copy(deep=True)
    for column in frame.select_dtypes("number").columns:
        frame.loc[:, column] = -1

    def put_back() -> None:
        for column in before.columns:
            frame[column] = before[column]

    return put_back
