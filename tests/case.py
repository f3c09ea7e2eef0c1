"""One kind of argument: how to make one, and every way to change it in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.same import same

Mutation = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One kind of argument.

    Attributes:
        name: a few words.
        make: a new live value; equal each time, so that a second one is a deep copy of the first.
        mutations: each changes one leaf in place (a leaf of each sort, for models).
        equal: whether what a hook received shows the same as a value from ``make``.
    """

    name: str
    make: Callable[[], Any]
    mutations: tuple[Mutation, ...]
    equal: Callable[[Any, Any], bool] = same

    def mutate(self, live: Any) -> None:
        """Change every leaf."""
        for mutation in self.mutations:
            mutation(live)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def set_to(name: str, value: Any) -> Mutation:
    return lambda live: object.__setattr__(live, name, value)


def put(key: Any, value: Any) -> Mutation:
    return lambda live: live.__setitem__(key, value)


def at(path: Callable[[Any], Any], mutation: Mutation) -> Mutation:
    return lambda live: mutation(path(live))


def add(tensor: Any) -> None:
    with torch.no_grad():
        tensor.add_(1)
