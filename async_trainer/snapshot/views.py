"""Optimizers, LR schedulers and gradient scalers: read-only views, as of the event.

Each is a bare object of a subclass of the live one's class: torch's own ``state_dict``, ``repr`` and ``get_scale`` run
on the captured values.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.optim.lr_scheduler import LRScheduler

from async_trainer.errors import StandInError
from async_trainer.snapshot.attributes import maker_of
from async_trainer.snapshot.faults import located
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule, capture, leaf, size
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value
from async_trainer.snapshot.tensors import Batch

if TYPE_CHECKING:
    from async_trainer.snapshot.fence import Fence

_references = capture.references
_REFUSED = {
    torch.optim.Optimizer: ("step", "zero_grad", "add_param_group", "load_state_dict"),
    LRScheduler: ("step", "load_state_dict"),
    torch.amp.GradScaler: ("scale", "unscale_", "step", "update", "load_state_dict"),
}
_CHANGED_BY_STEPS = frozenset({"state", "param_groups"})  # and by nothing else: what a user hangs on it may be
_NEEDED = frozenset({"state", "param_groups", "defaults"})


class SealedView(SealedNode):
    """A view.

    Attributes:
        cls: the class of the view.
        fields: the attributes of the live object that the view shows.
        argument: the event's argument that it came with; named when the view has expired.
    """

    __slots__ = ("argument", "cls", "fields")

    def __init__(self, argument: str) -> None:
        self.cls: type = object
        self.argument = argument
        self.fields: dict[str, Any] = {}

    def open(self, scope: Scope) -> Any:
        shell = scope.opened.get(self)
        if shell is None:
            shell = scope.opened[self] = maker_of(self.cls)()
            scope.stand_ins.append((shell, self.argument))
            fields: dict[str, Any] = {}
            object.__setattr__(shell, "__dict__", fields)
            for name, part in self.fields.items():
                fields[name] = open_value(part, scope)
        return shell


class SealedFresh(Sealed):
    """An empty container of the view's own."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def open(self, scope: Scope) -> Any:
        return self.make()


_NO_HOOKS = SealedFresh(OrderedDict)
_NO_STATES = SealedFresh(lambda: defaultdict(dict))


@cache
def view_class(base: Any, live: Any, left_out: frozenset[str]) -> type:
    """The class of the views of ``live``: it shows everything but ``left_out``, and changes nothing."""

    def missing(_: object, name: str) -> NoReturn:
        if name not in left_out:
            raise AttributeError(f"'{live.__name__}' object has no attribute '{name}'")
        raise StandInError(
            f"{live.__name__}.{name} is not part of the snapshot that background hooks see; use inline(...) for a "
            "callback that needs the live object"
        )

    namespace: dict[str, Any] = {name: _refusal(live, name) for name in _REFUSED[base]}
    namespace |= {"_view_of": live, "__module__": live.__module__, "__qualname__": live.__qualname__}
    namespace["_view_recipe"] = (base, live, left_out)  # for another process to make the same
    if not hasattr(live, "__getattr__"):
        namespace["__getattr__"] = missing
    made: type = type(live)(live.__name__, (live,), namespace)
    return made


def _refusal(live: type, name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise StandInError(
            f"{live.__name__}.{name}: background hooks see a snapshot, and can't change the training; use inline(...) "
            "for a callback that does"
        )

    refuse.__name__ = name
    return refuse


def _take(base: type, dropped: Callable[[str, Any], Any]) -> Callable[[Any, Memo], Any]:
    def take(value: Any, memo: Memo) -> Any:
        known = memo.copies.get(id(value))
        if known is not None:
            return memo.again(known)
        sealed = SealedView(memo.argument)
        memo.begin(value, sealed)
        fence = memo.store.fence_of(value) if memo.store is not None else None
        owner = memo.owner
        try:
            with Batch(memo):
                for name, part in _ordered(vars(value), fence):
                    replacement = dropped(name, part)
                    if replacement is None:
                        memo.owner = fence if name in _CHANGED_BY_STEPS else None
                        if name != "state" or fence is None or not fence.take_state(part, sealed.fields, memo):
                            _take_one(name, part, sealed.fields, memo)
                    elif replacement is not ...:
                        sealed.fields[name] = replacement
        finally:
            memo.owner = owner
        live: Any = type(value)
        sealed.cls = view_class(base, live, frozenset(vars(value).keys() - sealed.fields.keys() - {"step"}))
        sealed.done = True
        return sealed

    return take


def _ordered(live: dict[str, Any], fence: Fence | None) -> Iterable[tuple[str, Any]]:
    """The attributes; of a fenced optimizer the state last: it is kept by parameter."""
    if fence is None:
        return live.items()
    return sorted(live.items(), key=_is_state)


def _is_state(item: tuple[str, Any]) -> bool:
    return item[0] == "state"


def _take_one(name: str, part: Any, fields: dict[str, Any], memo: Memo) -> None:
    mark = memo.mark()
    try:
        fields[name] = leaf(part, memo)
    except Exception as error:
        # What a user's class has besides (a process group, a lock) isn't needed to show its state.
        if name in _NEEDED:
            raise located(error, f".{name}") from None
        memo.rollback(mark)


def _of_optimizer(name: str, _: Any) -> Any:
    if name.endswith("_hooks"):
        return _NO_HOOKS
    # Schedulers patch ``step`` on the instance.
    return ... if name == "step" else None


def _of_scheduler(_: str, part: Any) -> Any:
    # Its optimizer has all weights: whoever needs them names ``optimizers``.
    return ... if isinstance(part, torch.optim.Optimizer) else None


def _of_scaler(name: str, _: Any) -> Any:
    return _NO_STATES if name == "_per_optimizer_states" else None


def _parts(value: torch.optim.Optimizer) -> list[Any]:
    return [part for part in vars(value).values() if type(part) not in _references]


_VIEW = "read-only view"

KINDS: dict[type, Rule] = {
    torch.optim.Optimizer: Kind(_VIEW, _take(torch.optim.Optimizer, _of_optimizer), size, parts=_parts),
    LRScheduler: Kind(_VIEW, _take(LRScheduler, _of_scheduler)),
    torch.amp.GradScaler: Kind(_VIEW, _take(torch.amp.GradScaler, _of_scaler)),
}
