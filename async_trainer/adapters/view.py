"""What a background hook sees of a live trainer: chosen attributes, as of the event; anything else says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from async_trainer.errors import StandInError
from async_trainer.snapshot import Memo, Scope, Sealed, open_value
from async_trainer.snapshot.registry import leaf
from async_trainer.snapshot.sealed import SealedNode


class View:
    """Read-only. ``isinstance`` takes it for what it shows; it may be kept, as it never shows anything else."""

    def __init__(self, cls: type, shown: Mapping[str, Any], remedy: str) -> None:
        vars(self).update(_cls=cls, _shown=shown, _remedy=remedy)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # for isinstance()
        return vars(self)["_cls"]

    def __getattr__(self, name: str) -> Any:
        own = vars(self)
        shown = own.get("_shown", {})
        if name in shown:
            value = shown[name]
            if isinstance(value, Unreadable):
                raise StandInError(f"{own['_cls'].__name__}.{name} could not be read at this event: {value.why}")
            return value
        if name.startswith("__") or not own:  # what copy and pickle look for
            raise AttributeError(name)
        raise StandInError(f"{own['_cls'].__name__}.{name} is not part of what background hooks see: {own['_remedy']}")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise StandInError(
            f"{vars(self)['_cls'].__name__}.{name}: background hooks see a snapshot, and can't change the training; "
            "leave a callback that does inline"
        )

    __delattr__: Any = __setattr__

    def __repr__(self) -> str:
        own = vars(self)
        return f"<{own['_cls'].__name__} as of an event: {', '.join(own['_shown'])}>"


class ReadOnlyDict(dict[Any, Any]):
    """A dict of the trainer, as of an event."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StandInError(
            "background hooks see a snapshot of it, and can't change the training; leave a callback that does inline"
        )

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadOnlyDict, (dict(self),)


class Unreadable:
    """In the place of an attribute that raised when it was read at the event."""

    def __init__(self, why: str) -> None:
        self.why = why


class SealedView(SealedNode):
    """A view, captured."""

    __slots__ = ("cls", "fields", "remedy")

    def __init__(self, cls: type, remedy: str) -> None:
        self.cls = cls
        self.remedy = remedy
        self.fields: dict[str, Any] = {}

    def open(self, scope: Scope) -> Any:
        view = scope.opened.get(self)
        if view is None:
            shown: dict[str, Any] = {}
            view = scope.opened[self] = View(self.cls, shown, self.remedy)
            for name, part in self.fields.items():
                value = open_value(part, scope)
                shown[name] = ReadOnlyDict(value) if type(value) is dict else value
        return view


class SealedViews(Sealed):
    """A list of views."""

    __slots__ = ("views",)

    def __init__(self, views: Iterable[Any]) -> None:
        self.views = list(views)

    def open(self, scope: Scope) -> Any:
        return [open_value(one, scope) for one in self.views]


def take_view(live: Any, memo: Memo, names: Iterable[str], remedy: str, more: Mapping[str, Any]) -> Any:
    """Capture ``names`` of ``live``, and what ``more`` has captured already. TRAINING THREAD.

    Args:
        live: a trainer, a logger, an optimizer.
        memo: the event's.
        names: the attributes that the view shows. One that can't be read or copied raises when a hook asks for it.
        remedy: what to do about an attribute that it doesn't show, for the message.
        more: attributes, captured.
    """
    known = memo.copies.get(id(live))
    if known is not None:
        return memo.again(known)
    sealed = SealedView(type(live), remedy)
    memo.begin(live, sealed)
    for name in names:
        mark = memo.mark()
        try:
            sealed.fields[name] = leaf(getattr(live, name), memo)
        except Exception as error:
            memo.rollback(mark)
            sealed.fields[name] = Unreadable(f"{type(error).__name__}: {error}")
    sealed.fields.update(more)
    sealed.done = True
    return sealed


def optimizer_views(optimizers: Iterable[Any], memo: Memo) -> SealedViews:
    """Views of optimizers that show ``param_groups``, learning rates and the like, without parameters or states."""

    def one(optimizer: Any) -> SealedView:
        sealed = SealedView(type(optimizer), "their parameters and states are big; select= gives what you choose")
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        sealed.fields["param_groups"] = leaf(groups, memo)
        sealed.done = True
        return sealed

    return SealedViews([one(optimizer) for optimizer in optimizers])
