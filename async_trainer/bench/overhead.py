"""What an event costs the training thread, in a burst, beside what one would use instead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from async_trainer.bench.doubles import BareQueue, QueuedLog, Quiet, Writer
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, Ways, bursts, loops
from async_trainer.callback import background
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.train.state import TrainerState

CALLS = 500  # in a burst; what has been queued is drained between two
EVENT, QUEUED = "an event, one hook naming state", "logging.QueueHandler"


def measure(effort: Effort) -> list[Row]:
    """The rows of ``overhead``."""
    return [*_unheard(effort), *_heard(effort)]


def _unheard(effort: Effort) -> list[Row]:
    names = {"handler": CallbacksHandler(), "quiet": Quiet(), "end": Event.BATCH_END, "state": TrainerState()}
    # The cheapest call that could be there instead: a method that takes what the event has, and does nothing.
    ways = {"unheard": "handler.call_event(end, state=state)", "empty": "quiet.on_batch_end(state=state)"}
    took = loops(ways, names, rounds=effort.times(200, 20), calls=1_000)
    unheard, empty = took["unheard"], took["empty"]
    row = Row(
        "an event nobody listens to",
        unheard.p50 * 1e6,
        "µs",
        beside="an empty method call",
        other=empty.p50 * 1e6,
        ratio=unheard.ratio(empty),
        budget=6.0,
        of="ratio",
        gated=True,
    )
    return [row]


def _heard(effort: Effort) -> list[Row]:
    state, writer = TrainerState(), Writer()
    bare, log = BareQueue(), QueuedLog("overhead")
    with CallbacksHandler([background(Quiet(), queue_size=10 * CALLS)]) as handler, ThreadPoolExecutor(1) as executor:
        ways: Ways = {
            EVENT: (lambda: handler.call_event(Event.BATCH_END, state=state), handler.flush),
            QUEUED: log,
            "SimpleQueue.put": (bare, bare.drain),
            "ThreadPoolExecutor.submit": (
                lambda: executor.submit(writer.add_scalar, "loss", 0.5, 1),
                lambda: executor.submit(int).result(),
            ),
        }
        took = bursts(ways, rounds=effort.times(40, 15), calls=CALLS)
    bare.close()
    log.close()
    event, queued = took[EVENT], took[QUEUED]
    rows = [Row(name, one.p50 * 1e6, "µs", one.p99 * 1e6) for name, one in took.items()]
    ratio = event.ratio(queued)
    return [
        replace(rows[0], budget=2.0),
        replace(rows[0], what=f"{EVENT}, p99", budget=10.0, of="p99"),
        replace(
            rows[0],
            what=f"{EVENT}, beside",
            beside=QUEUED,
            other=queued.p50 * 1e6,
            ratio=ratio,
            budget=0.3,
            of="ratio",
            gated=True,
        ),
        *(replace(row, what=f"({row.what})") for row in rows[1:]),
    ]
