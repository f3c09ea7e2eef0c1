"""Files that are there as a whole or not at all, those that go on exactly, and weights in them."""

from __future__ import annotations

from async_trainer.files.appended import AppendedFile as AppendedFile

__all__ = ["AppendedFile"]
