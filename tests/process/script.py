"""A training script, as people write them: no main guard, its classes in ``__main__``. Prints what came of it."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import sys
import types
from typing import Any

from async_trainer import CallbacksHandler, background

COUNT = 0
print("the script runs")


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Item:
    x: int


class Trouble(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class First:
    def __init__(self, step: int) -> None:
        self.rows: list[Any] = []
        self.add = lambda x: x + step

    def on_batch_end(self, *, item: Item, colour: Colour, **kwargs: Any) -> None:
        global COUNT
        COUNT += 1
        self.rows.append([isinstance(item, Item), colour is Colour.RED, self.add(item.x), COUNT])


class Second:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_batch_end(self, *, f: Any, **kwargs: Any) -> None:
        self.rows.append([COUNT, f(1)])
        if COUNT == 2:
            raise Trouble(5)


class Around:
    """What it finds around it."""

    def on_batch_end(self) -> None:
        self.found = {
            "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path, "child": os.getpid() != PARENT,
            "PYTHONPATH": os.environ.get("PYTHONPATH"), "SAID": os.environ.get("SAID"),
        }  # fmt: skip


PARENT = os.getpid()
os.environ["SAID"] = "after the start"
first, second, around = First(10), Second(), Around()
notebook: dict[str, Any] = {"__name__": "__main__"}
exec(
    "import math\ndef root(x): return math.sqrt(x)\nclass Cell:\n  def on_batch_end(self): self.got = root(4)", notebook
)
made = types.ModuleType("made_by_hand")
sys.modules["made_by_hand"] = made
exec("class Hand:\n  def on_batch_end(self, *, f): self.got = f(1)\ndef twice(x): return 2 * x", made.__dict__)
cell, hand = notebook["Cell"](), made.__dict__["Hand"]()
callbacks = [background(one, placement="process", lane="one") for one in (first, second, around, cell, hand)]
errors: list[BaseException] = []
with CallbacksHandler(callbacks, events=["on_item"]) as handler:
    record = handler._pool.failures.record
    handler._pool.failures.record = lambda job, attempt, error: (errors.append(error), record(job, attempt, error))[1]
    for n in range(3):
        handler.call_event("on_batch_end", item=Item(n), colour=Colour.RED, f=made.__dict__["twice"])
report = handler.close()
print("THE END", json.dumps({
    "first": first.rows, "second": second.rows, "around": around.found, "cell": cell.got, "hand": hand.got,
    "delivered": report.delivered, "failed": report.failed, "path": sys.path,
    "errors": [[type(one) is Trouble, getattr(one, "code", None)] for one in errors],
}))  # fmt: skip
