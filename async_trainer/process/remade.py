"""What a pickle from the other end refers to, made again here: definitions, shared memory, tensors, classes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle

from async_trainer.snapshot.mapped import Mapped

mapped = Mapped()
"""The segments of this process's parent. A process is the child of one."""

_definitions: dict[int, bytes | Any] = {}


def define(number: int, pickled: bytes) -> None:
    """The parent is about to refer to a definition."""
    _definitions[number] = cloudpickle.loads(pickled)


def defined(number: int) -> Any:
    """What the parent has defined by that number."""
    return _definitions[number]


def unpack(pickled: bytes, buffers: Sequence[tuple[int, int, int]] = ()) -> Any:
    """The value of a pickle of ``Packer.pack``.

    Raises:
        Exception: a class can't be imported, or what it does when it is made again.
    """
    return pickle.loads(pickled, buffers=[mapped.view(*where) for where in buffers])


def view_of(number: int, start: int, nbytes: int) -> memoryview:
    """A part of a segment."""
    return mapped.view(number, start, nbytes)


def remade_shared(view: memoryview, place: int, dtype: Any, shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor over shared memory."""
    import torch

    count = 1
    for length in shape:
        count *= length
    flat = torch.frombuffer(view, dtype=dtype, count=count, offset=place)
    return flat if stride == (1,) else flat.as_strided(shape, stride)


def remade_small(held: bytes, dtype: Any, shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor that came with the rest."""
    import torch

    if not held:
        return torch.empty_strided(shape, stride, dtype=dtype)
    flat = torch.frombuffer(bytearray(held), dtype=dtype)
    return flat.as_strided(shape, stride)


def remade_parameter(data: Any, requires_grad: bool) -> Any:
    """A parameter."""
    import torch

    return torch.nn.Parameter(data, requires_grad)


def parametrized_class(base: Any, names: tuple[str, ...]) -> type:
    """The class of modules of class ``base`` whose ``names`` are parametrized. The other end's own leads to its live
    module, through a closure of a property."""
    from torch import nn
    from torch.nn.utils import parametrize

    from async_trainer.snapshot.attributes import maker_of

    bare = maker_of(base)()
    object.__setattr__(bare, "__dict__", dict(vars(nn.Module())))
    parametrize._inject_new_class(bare)
    for name in names:
        parametrize._inject_property(bare, name)
    return type(bare)
