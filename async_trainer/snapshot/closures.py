"""Functions that a module keeps as attributes, and that close over parts of it."""

from __future__ import annotations

import types
from typing import Any

import torch

from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import leaf
from async_trainer.snapshot.sealed import Scope, Sealed


class SealedFunction(Sealed):
    """A function that closes over parts of the module it is an attribute of."""

    __slots__ = ("cells", "function")

    def __init__(self, function: types.FunctionType, cells: list[Any]) -> None:
        self.function = function
        self.cells = cells

    def __reduce__(self) -> tuple[Any, ...]:
        # The function itself leads to the live module: another process gets its code, and the captured cells.
        live = self.function
        empty = tuple(types.CellType() for _ in self.cells)
        bare = types.FunctionType(live.__code__, live.__globals__, live.__name__, live.__defaults__, empty)
        bare.__kwdefaults__ = live.__kwdefaults__
        return SealedFunction, (bare, self.cells)

    def open(self, scope: Scope) -> types.FunctionType:
        live = self.function
        cells = tuple(
            part if isinstance(part, types.CellType) else types.CellType(part.open(scope)) for part in self.cells
        )
        function = types.FunctionType(live.__code__, live.__globals__, live.__name__, live.__defaults__, cells)
        function.__kwdefaults__ = live.__kwdefaults__
        function.__dict__.update(live.__dict__)
        return function


def take_function(function: types.FunctionType, memo: Memo) -> Any:
    """By reference, save what it closes over of a model. TRAINING THREAD."""
    # ``self.act = lambda x: self.head(x)`` would call the live module.
    cells: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:
            held = None
        bound = held.__self__ if isinstance(held, types.MethodType) else held
        cells.append(leaf(held, memo) if isinstance(bound, torch.nn.Module | torch.Tensor) else cell)
    return SealedFunction(function, cells) if any(isinstance(cell, Sealed) for cell in cells) else function
