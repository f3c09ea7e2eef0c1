"""Log records: formatted on the training thread."""

from __future__ import annotations

import logging

from async_trainer.snapshot import Memo, Scope, open_value, take


def test_a_log_record_is_formatted_at_once() -> None:
    class Live:
        text = "then"

        def __str__(self) -> str:
            return self.text

    live = Live()
    try:
        raise ValueError("inside")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("run", logging.INFO, "f.py", 3, "it is %s", (live,), info)
    record.extra = {"tags": ["a"]}
    taken = take(record, Memo(), "record")
    live.text = "now"
    record.extra["tags"].append("b")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    assert first is not second
    assert (first.getMessage(), first.args, first.exc_info) == ("it is then", None, None)
    assert "ValueError: inside" in logging.Formatter().format(first)
    assert first.extra == {"tags": ["a"]}
    assert record.args == (live,)
