"""The stand-in for an argument that a hook did not name."""

from __future__ import annotations

from typing import Any, NoReturn

from async_trainer.errors import UnnamedArgumentError

_USES = (
    "setattr delattr call getitem setitem delitem len bool iter next reversed contains enter exit hash format "
    "float int complex index bytes round trunc floor ceil array fspath reduce_ex neg pos abs invert eq ne lt le gt ge "
    "add radd sub rsub mul rmul matmul rmatmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow "
    "and rand or ror xor rxor lshift rlshift rshift rrshift"
)


class Untaken:
    """Stands in ``**kwargs`` for an argument that the hook did not name, and that is no plain value: using it raises.

    ``repr()``, ``isinstance()`` and ``is`` don't, so that ``kwargs`` can be printed.
    """

    __slots__ = ("_message",)

    def __init__(self, where: str, name: str) -> None:
        message = f"{where} must name {name!r} to use it: def ...(self, *, {name}, **kwargs)"
        object.__setattr__(self, "_message", message)

    def __repr__(self) -> str:
        return f"<not captured: {object.__getattribute__(self, '_message')}>"

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        return _refuse(self)


def _refuse(untaken: Untaken, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnnamedArgumentError(object.__getattribute__(untaken, "_message"))


for _use in _USES.split():
    setattr(Untaken, f"__{_use}__", _refuse)
