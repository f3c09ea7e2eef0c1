"""The state of a fenced optimizer: hundreds of tensors, each in its place since the first step, changed by steps only.

They are copied while the training goes on, and what is needed for that is found out then: at an event it is only looked
whether they are those of the last time. To seal them one by one there takes ten times as long.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import call, is_
from typing import TYPE_CHECKING, Any

import torch

from async_trainer.snapshot.kind import SMALL
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import capture
from async_trainer.snapshot.sealed import Scope, Sealed, open_value
from async_trainer.snapshot.tensors import SealedTensor

if TYPE_CHECKING:
    from async_trainer.snapshot.fence import Fence

_references = capture.references


class Form:
    """What is known of the state of one optimizer from the last time.

    Args:
        names: of each parameter's values.
        values: all of them, parameter by parameter.

    Attributes:
        names: these.
        fits: whether it can be captured as a whole.
        places: of the tensors among the values.
        nbytes: of the big ones among them.
    """

    __slots__ = ("_refs", "_types", "fits", "names", "nbytes", "places")

    def __init__(self, names: list[tuple[Any, ...]], values: list[Any]) -> None:
        self.names = names
        self._types = [*map(type, values)]
        self.places = [place for place, cls in enumerate(self._types) if cls is torch.Tensor]
        tensors = self.tensors(values)
        self._refs: list[Callable[[], Any]] = [*map(weakref.ref, tensors)]
        self.fits = (
            _references.issuperset({*self._types} - {torch.Tensor})
            and all(type(name) is str for name in chain.from_iterable(names))
            and all(map(_fits, tensors))
            and len({*map(id, tensors)}) == len(tensors)
        )
        self.nbytes = sum(tensor.nbytes for tensor in tensors if tensor.nbytes > SMALL) if self.fits else 0

    def tensors(self, values: list[Any]) -> list[torch.Tensor]:
        """Those among ``values``."""
        return values if len(self.places) == len(values) else [values[place] for place in self.places]

    def is_of(self, names: list[tuple[Any, ...]], values: list[Any]) -> bool:
        """Whether ``values`` are of this form: the same tensors in the same places."""
        return (
            self.names == names
            and self._types == [*map(type, values)]
            and all(map(is_, self.tensors(values), map(call, self._refs)))
        )


def _fits(live: torch.Tensor) -> bool:
    return (
        live.is_cpu
        and live.layout is torch.strided
        and not (live.is_nested or live.is_quantized or live.is_inference() or live.requires_grad or live.__dict__)
        and (live.is_contiguous() or (live.ndim == 4 and live.is_contiguous(memory_format=torch.channels_last)))
    )


class SealedState(Sealed):
    """``optimizer.state``: by parameter, then by name.

    Attributes:
        keys: the parameters, captured.
        names: of each one's values.
        values: all of them; the tensors among them once :meth:`leaves` has sealed them.
        plain: whether the state is a plain dict.
    """

    __slots__ = ("keys", "names", "places", "plain", "values")

    def __init__(self, keys: list[Any], values: list[Any], form: Form, plain: bool) -> None:
        self.keys = keys
        self.names = form.names
        self.places = form.places
        self.plain = plain
        self.values = values

    def leaves(self) -> Iterator[tuple[SealedTensor, torch.Tensor]]:
        """Each tensor, and what seals it from now on: once, by whoever copies them."""
        for place in self.places:
            live = self.values[place]
            leaf = self.values[place] = SealedTensor(torch.Tensor, live.nbytes <= SMALL)
            yield leaf, live

    def open(self, scope: Scope) -> Any:
        state: dict[Any, dict[str, Any]] | None = scope.opened.get(self)
        if state is None:
            state = scope.opened[self] = {} if self.plain else defaultdict(dict)
            values = iter(self.values)
            for key, names in zip(self.keys, self.names, strict=True):
                state[open_value(key, scope)] = {name: open_value(next(values), scope) for name in names}
        return state


def take_state(state: Any, form: Form | None, fence: Fence, memo: Memo) -> tuple[SealedState | None, Form | None]:
    """Capture ``optimizer.state``, after all of its parameters. TRAINING THREAD.

    Args:
        state: the live one.
        form: that of the last time.
        fence: the optimizer's.
        memo: the event's.

    Returns:
        None where it has to be captured value by value; and the form for the next time.
    """
    plain = type(state) is dict
    if not state or not (plain or (type(state) is defaultdict and state.default_factory is dict)):
        return None, None
    inner: Sequence[Any] = [*state.values()]
    if {*map(type, inner)} != {dict}:
        return None, None
    names = [*map(tuple, inner)]
    values = [*chain.from_iterable(map(dict.values, inner))]
    if form is None or not form.is_of(names, values):
        form = Form(names, values)
    keys = [*map(memo.copies.get, map(id, state))]
    if not form.fits or form.nbytes <= SMALL or None in keys or id(state) in memo.copies:
        return None, form
    tensors = form.tensors(values)
    if not memo.copies.keys().isdisjoint(map(id, tensors)):  # captured already, as something else of this event
        return None, form
    sealed = SealedState(keys, values, form, plain)
    memo.put(state, sealed)
    memo.states.append((sealed, tensors, form.nbytes, fence, memo.argument))
    return sealed, form
