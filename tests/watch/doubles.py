"""Callbacks of these tests, in a module that loads nothing: a child process imports it."""

from __future__ import annotations


class Log:
    def on_batch_end(self) -> None: ...


class Async:
    async def on_batch_end(self) -> None: ...


class Fails:
    def on_validation_end(self) -> None:
        raise ValueError("no <colour>")


class Inline:
    def on_batch_end(self) -> None: ...
