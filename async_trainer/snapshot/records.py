"""``logging.LogRecord``: formatted on the training thread, since its arguments are live objects."""

from __future__ import annotations

import logging
from typing import Any

from async_trainer.snapshot.attributes import Attributes, maker_of, take_fields
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.sealed import Scope, Sealed

_formatter = logging.Formatter()


class SealedRecord(Sealed):
    """A record without live objects; each handler gets its own, since formatters write to it."""

    __slots__ = ("attributes", "cls")

    def __init__(self, cls: type, attributes: Attributes) -> None:
        self.cls = cls
        self.attributes = attributes

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            shell = scope.opened[self] = maker_of(self.cls)()
            self.attributes.put(shell, scope)
        return scope.opened[self]


def take_record(value: logging.LogRecord, memo: Memo) -> Any:
    """The message is merged with its arguments, the traceback made text. TRAINING THREAD.

    As ``logging.handlers.QueueHandler.prepare`` of Python 3.11, save that the traceback stays in ``exc_text``, so that
    the handler's own formatter decides where it goes.
    """
    known = memo.copies.get(id(value))
    if known is not None:
        return known
    fields = dict(vars(value))
    fields["msg"] = fields["message"] = value.getMessage()
    fields["args"] = None
    if value.exc_info and not value.exc_text and value.exc_info[0] is not None:
        fields["exc_text"] = _formatter.formatException(value.exc_info)
    fields["exc_info"] = None
    sealed = SealedRecord(type(value), Attributes(take_fields(fields, memo), ()))
    memo.put(value, sealed)
    return sealed


KINDS: dict[type, Kind] = {logging.LogRecord: Kind("formatted", take_record)}
