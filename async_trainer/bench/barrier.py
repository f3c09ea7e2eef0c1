"""What a barrier costs the training thread while 10,000 events wait, beside waiting for them."""

from __future__ import annotations

from async_trainer.bench.doubles import Quiet
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, clock, turns
from async_trainer.callback import background
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.train.state import TrainerState

WAITING = 10_000


def measure(effort: Effort) -> list[Row]:
    """The rows of ``barrier``."""
    state = TrainerState()
    with CallbacksHandler([background(Quiet(), queue_size=WAITING)]) as handler:
        drains: list[float] = []

        def a_barrier() -> float:
            with handler._pool.hold():
                for _ in range(WAITING):
                    handler.call_event(Event.BATCH_END, state=state)
                queued = handler.stats().lanes["quiet"].queued
                began = clock()
                barrier = handler.barrier()
                spent = clock() - began
                early = barrier.done
            began = clock()
            handler.flush()
            drains.append(clock() - began)
            if early or not barrier.done or queued < WAITING - 1:
                raise AssertionError(f"{queued} events waited; done before: {early}, after: {barrier.done}")
            return spent

        took = turns({"barrier": a_barrier, "drain": lambda: drains[-1]}, rounds=effort.times(25, 5))
    ours, drain = took["barrier"], took["drain"]
    return [
        Row(
            f"barrier(), {WAITING:,} events waiting",
            ours.p50 * 1e6,
            "µs",
            beside="a drain: flush()",
            other=drain.p50 * 1e6,
            ratio=ours.ratio(drain),
            budget=50.0,
        )
    ]
