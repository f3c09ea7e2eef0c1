"""What a call of a proxied object costs the training thread, with scalar arguments."""

from __future__ import annotations

from async_trainer.bench.doubles import QueuedLog, Writer
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, Ways, bursts
from async_trainer.handler import CallbacksHandler

CALLS = 500
CALL, QUEUED, DIRECT = "a proxied call, three scalars", "logging.QueueHandler", "the same call, not proxied"


def measure(effort: Effort) -> list[Row]:
    """The rows of ``proxy``."""
    log, direct = QueuedLog("proxy"), Writer()
    with CallbacksHandler() as handler:
        writer = handler.proxy(Writer(), queue_size=10 * CALLS)
        ways: Ways = {
            CALL: (lambda: writer.add_scalar("loss", 0.5, 1), handler.flush),
            QUEUED: log,
            DIRECT: lambda: direct.add_scalar("loss", 0.5, 1),
        }
        took = bursts(ways, rounds=effort.times(40, 5), calls=CALLS)
    log.close()
    call = took[CALL]
    return [
        Row(
            CALL,
            call.p50 * 1e6,
            "µs",
            call.p99 * 1e6,
            beside=QUEUED,
            other=took[QUEUED].p50 * 1e6,
            ratio=call.ratio(took[QUEUED]),
            budget=3.0,
        ),
        Row(f"({DIRECT})", took[DIRECT].p50 * 1e6, "µs", took[DIRECT].p99 * 1e6),
    ]
