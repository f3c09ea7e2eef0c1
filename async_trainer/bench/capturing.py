"""How long the loop is held by capturing a model and its optimizer, and what it does to the step."""

from __future__ import annotations

import inspect
import logging
import tempfile
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, by_turns, clock
from async_trainer.bench.training import Loop
from async_trainer.callback import background
from async_trainer.handler import CallbacksHandler
from async_trainer.train.state import TrainerState

MEGABYTES = 300
FEW, MANY = 150, 1500
OURS, PLAIN = "async_trainer", "plain step"
DCP = "torch DCP async_save"
Way = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]
"""Captures; waits, after the step that is measured, until nothing goes on any more; ends it."""


class Checkpoint:
    """Names what a checkpoint holds, and looks at it."""

    def on_batch_end(self, *, model: nn.Module, optimizers: Any, state: TrainerState) -> None:
        model.state_dict()
        optimizers["adam"].state_dict()


def measure(effort: Effort) -> list[Row]:
    """The rows of ``capture``."""
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it says what such captures cost, rightly
    warnings.filterwarnings("ignore", module="torch.distributed")
    return [*_many_ways(effort), _many_tensors(effort), _frame(effort)]


def _many_ways(effort: Effort) -> list[Row]:
    loop = Loop(MEGABYTES, FEW, batch=192 if effort.full else 64)  # with --quick a step of some 200 ms
    held, steps = _measure(loop, {PLAIN: NOTHING, OURS: ours(loop), **others(loop, effort)}, effort)
    plain = median(steps[PLAIN])
    size = f"{MEGABYTES} MB, {len(loop.big)} tensors"
    clones = median(held["fresh clone"])
    mine = median(held[OURS])
    ratio = median(with_it / without for with_it, without in zip(steps[OURS], steps[PLAIN], strict=True))
    return [
        Row(
            f"the loop held by capturing {size}",
            mine * 1e3,
            "ms",
            beside="a fresh clone",
            other=clones * 1e3,
            ratio=mine / clones,
            budget=budget(len(loop.big)) * 1e3,
        ),
        Row(
            f"a step that captures {size}",
            median(steps[OURS]) * 1e3,
            "ms",
            beside="a plain step",
            other=plain * 1e3,
            ratio=ratio,
            budget=1.1,
            of="ratio",
            gated=True,
            note=_note(plain, effort),
        ),
        *(
            Row(
                f"(held by {name})",
                median(held[name]) * 1e3,
                "ms",
                beside="a plain step",
                other=plain * 1e3,
                ratio=median(held[name]) / plain,
                note=f"the step {median(steps[name]) * 1e3:.0f} ms",
            )
            for name in held
            if name not in (OURS, PLAIN)
        ),
    ]


def _note(plain: float, effort: Effort) -> str:
    notes = [] if plain >= 0.1 else [f"the budget is for steps of 100 ms or more, not {plain * 1e3:.0f}"]
    notes += [f"{DCP} is left out: {why}"] if (why := _left_out(effort)) else []
    return "; ".join(notes)


def _left_out(effort: Effort) -> str:
    """Why torch's ``async_save`` is not measured: it writes 300 MB each time; in torch 2.6 it wants a process group."""
    if not effort.full:
        return "--quick"
    from torch.distributed.checkpoint.state_dict_saver import async_save

    return "" if "no_dist" in inspect.signature(async_save).parameters else "this torch's needs a process group"


def _many_tensors(effort: Effort) -> Row:
    loop = Loop(MEGABYTES, MANY, batch=8)  # what its step takes is not shown
    held, _ = _measure(loop, {OURS: ours(loop), "fresh clone": clone(loop)}, effort)
    mine, clones = median(held[OURS]), median(held["fresh clone"])
    return Row(
        f"the loop held by capturing {MEGABYTES} MB, {len(loop.big)} tensors",
        mine * 1e3,
        "ms",
        beside="a fresh clone",
        other=clones * 1e3,
        ratio=mine / clones,
        budget=budget(len(loop.big)) * 1e3,
    )


def budget(tensors: int) -> float:
    """s: 1 ms up to 200 tensors, then 4 µs for each."""
    return 1e-3 + max(0, tensors - 200) * 4e-6


def _measure(loop: Loop, ways: dict[str, Way], effort: Effort) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """What each way held the loop, and what the step with it took, in s; by turns."""
    held: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for name, counts in by_turns(ways, effort.times(12), warm_up=effort.times(2, 1)):
        capture, rest, _ = ways[name]
        began = clock()
        capture()
        captured = clock()
        loop.step()
        ended = clock()
        rest()
        if counts:
            held[name].append(captured - began)
            steps[name].append(ended - began)
    for _, _, end in ways.values():
        end()
    return held, steps


def ours(loop: Loop) -> Way:
    """A background callback that names model and optimizer."""
    handler = CallbacksHandler([background(Checkpoint())])
    handler.call_event("on_train_start", optimizers=loop.optimizers)

    def capture() -> None:
        handler.call_event("on_batch_end", model=loop.model, optimizers=loop.optimizers, state=loop.state)

    return capture, handler.flush, handler.close


def nothing() -> None:
    """Neither to wait for, nor to end."""


NOTHING: Way = (nothing, nothing, nothing)


def clone(loop: Loop) -> Way:
    """New memory at each capture."""
    return (lambda: [tensor.clone() for tensor in loop.big]), nothing, nothing


def others(loop: Loop, effort: Effort) -> dict[str, Way]:
    """What one would write, and what torch has."""
    pool = [torch.empty_like(tensor) for tensor in loop.big]
    return {
        "fresh clone": clone(loop),
        "a pooled copy, inline": ((lambda: torch._foreach_copy_(pool, loop.big)), nothing, nothing),
        **({DCP: dcp(loop)} if not _left_out(effort) else {}),
    }


def dcp(loop: Loop) -> Way:
    """torch.distributed.checkpoint: staged on the loop by default, written by a thread."""
    from torch.distributed.checkpoint.state_dict_saver import async_save

    folder = tempfile.TemporaryDirectory()
    pending: list[Any] = []

    def save() -> None:
        state = {"model": loop.model.state_dict(), "adam": {str(n): tensor for n, tensor in enumerate(loop.big)}}
        pending.append(async_save(state, checkpoint_id=folder.name, no_dist=True))

    def rest() -> None:
        pending.pop().result()  # it has one save at a time

    return save, rest, folder.cleanup


def _frame(effort: Effort) -> Row:
    """What capturing a frame of 100 MB holds the loop."""

    class Names:
        def on_batch_end(self, *, frame: pd.DataFrame) -> None: ...

    live = pd.DataFrame({str(n): np.zeros(MEGABYTES * 100_000 // 24) for n in range(10)})
    cold, deep = [], []
    with CallbacksHandler([background(Names())]) as handler:

        def capture() -> float:
            began = clock()
            handler.call_event("on_batch_end", frame=live)
            spent = clock() - began
            handler.flush()
            return spent

        held = [capture() for _ in range(effort.times(40) + 5)]
        for _ in range(effort.times(40) + 5):
            cold.append(capture())
            began = clock()
            live.copy(deep=True)
            deep.append(clock() - began)
    mine, other = median(held[5:]), median(deep[5:])
    return Row(
        f"the loop held by a DataFrame of {live.memory_usage().sum() / 1e6:.0f} MB, pandas {pd.__version__}",
        mine * 1e3,
        "ms",
        beside="a deep copy",
        other=other * 1e3,
        ratio=mine / other,
        note=f"{median(cold[5:]) * 1e3:.2g} ms where 100 MB have just gone through the caches",
    )
