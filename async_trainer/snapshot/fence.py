"""The wait, just before an optimizer changes its weights, for copies of those weights that are still under way."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from itertools import chain
from types import FrameType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.states import Form, take_state
from async_trainer.snapshot.transfer import Transfer


class Fence:
    """Guards what one optimizer changes: the parameters of its groups, and its state.

    Args:
        optimizer: one of torch's own; its step hooks are used.
        waited: the seconds that the training thread has waited, by what for; added to under ``"fence"``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, waited: dict[str, float]) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._waited = waited
        self._pending: list[Transfer] = []
        self._form: Form | None = None  # of its optimizer's state, the last time
        self._waiting = False  # in the hook before a step
        self.stepping = _inside_a_step()  # then (LBFGS calls the loop's closure there) nothing may be copied later
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        _look_after(self)

    def __repr__(self) -> str:
        return f"<Fence of {type(self._optimizer()).__name__}, {len(self._pending)} pending>"

    @property
    def alive(self) -> bool:
        """Whether its optimizer is, or copies of what was its are under way."""
        return self._optimizer() is not None or self.pending

    @property
    def pending(self) -> bool:
        """Whether copies are under way."""
        return not all(transfer.done for transfer in self._pending)

    def parameters(self) -> Iterable[int]:
        """The ids of the parameters that are its optimizer's now. TRAINING THREAD."""
        optimizer = self._optimizer()
        groups = optimizer.param_groups if optimizer is not None else ()
        return map(id, chain.from_iterable([group["params"] for group in groups]))

    def guards(self, optimizer: object) -> bool:
        """Whether ``optimizer`` is its own."""
        return self._optimizer() is optimizer

    def concerns(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether copies are under way of what ``optimizer``, another one, may change."""
        if not self.pending or self.guards(optimizer):
            return False
        ours = set(self.parameters())
        return not ours or any(
            id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]
        )

    def take_state(self, state: Any, fields: dict[str, Any], memo: Memo) -> bool:
        """Capture its optimizer's state as a whole, into ``fields``, if it can be. TRAINING THREAD."""
        if self.stepping:
            return False
        sealed, self._form = take_state(state, self._form, self, memo)
        if sealed is not None:
            fields["state"] = sealed
        return sealed is not None

    def expect(self, transfer: Transfer) -> None:
        """Wait for ``transfer`` before the next step. TRAINING THREAD."""
        if transfer not in self._pending:
            self._pending = [one for one in self._pending if not one.done]
            self._pending.append(transfer)

    def wait(self) -> None:
        """Wait for the copies that are under way. TRAINING THREAD."""
        for transfer in self._pending:
            self._waited["fence"] += transfer.wait()
        # Not before: Ctrl-C while it waits must not make the next step forget those that are left.
        self._pending = [one for one in self._pending if not one.done]

    def remove(self) -> None:
        """Leave the optimizer as it was; unless a step waits here (it goes through the hooks, which must not change
        then), or would have to: then the hooks stay, for nothing. Any thread."""
        if not (self._waiting or self.pending):
            for hook in self._hooks:
                hook.remove()

    def forget(self) -> None:
        """In a forked child nobody makes the copies."""
        self._pending = []

    def _before_step(self, *_: Any) -> None:
        self._waiting = True
        try:
            self.wait()
        finally:
            self._waiting = False
        self.stepping = True

    def _after_step(self, *_: Any) -> None:
        self.stepping = False


_all: tuple[weakref.ref[Fence], ...] = ()
_hook: Any = None  # stays for good: hooks must not change while a step goes through them, on whatever thread


def _look_after(fence: Fence) -> None:
    global _all, _hook
    _all = (*(one for one in _all if one() is not None), weakref.ref(fence))
    if _hook is None:
        _hook = register_optimizer_step_pre_hook(_before_any_step)


def _before_any_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Weights may be changed by several optimizers, among them such as the run wasn't given, or not yet."""
    for one in _all:
        fence = one()
        if fence is not None and fence.concerns(optimizer):
            fence.wait()


def _inside_a_step() -> bool:
    """Whether the caller, whom no hook has told of it, is in an optimizer's step: in a closure, or a hook."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != torch.optim.Optimizer.__module__:
        frame = frame.f_back
    return frame is not None


def torchs_own(values: Iterable[Any], levels: int = 2) -> Iterable[torch.optim.Optimizer]:
    """The optimizers among ``values`` that are of torch's own classes: what others change, and when, isn't known.

    Of what Accelerate has prepared it is the one within: to step that is all that its own step does.
    """
    for value in values:
        if isinstance(value, torch.optim.Optimizer):
            cls = type(value)
            if cls.__name__ == "AcceleratedOptimizer" and cls.__module__.startswith("accelerate."):
                value = vars(value).get("optimizer")
            if type(value).__module__.startswith("torch.optim."):
                yield value
        elif isinstance(value, (Mapping, list, tuple)) and levels:
            yield from torchs_own(value.values() if isinstance(value, Mapping) else value, levels - 1)
