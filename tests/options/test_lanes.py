"""Names, lanes, placements: where a callback runs."""

from __future__ import annotations

import contextvars
import logging
import pickle
import threading
from typing import Any

import pytest

from async_trainer import background, inline
from async_trainer.callback import Background, Placement, snake_case
from async_trainer.runtime import loop
from tests.options.doubles import Counts, Fails, Make, Rows, fire

# ----------------------------------------------------------------------------------------------------------- name, lane


def test_names_are_the_class_name_in_snake_case_with_a_number_where_it_is_taken(handlers: Make) -> None:
    class MLflowLog(Rows): ...

    handler = handlers(
        background(MLflowLog()), MLflowLog(), background([MLflowLog(), Rows()]), background(Rows(), name="mine")
    )
    assert list(handler.stats().lanes) == ["mlflow_log", "mlflow_log_2", "rows", "mine"]
    handler.add_callbacks([background(MLflowLog())])
    assert list(handler.stats().lanes)[-1] == "mlflow_log_3"


@pytest.mark.parametrize(
    ("of_class", "name"),
    [
        ("WandB", "wandb"),
        ("MLflow", "mlflow"),
        ("TensorBoard", "tensor_board"),
        ("CSVLog", "csv_log"),
        ("B", "b"),
        ("OnlyInAProcess", "only_in_a_process"),
        ("ToMLflow", "to_mlflow"),
        ("LogAUC", "log_auc"),
    ],
)
def test_a_word_of_a_name_is_more_than_a_last_capital(of_class: str, name: str) -> None:
    assert snake_case(of_class) == name


def test_a_name_is_the_key_of_stats_states_and_errors(placement: Placement, handlers: Make) -> None:
    counts = Counts()
    handler = handlers(
        background(counts, name="curve", placement=placement), background(Fails(), name="bad", placement=placement)
    )
    fire(handler, 2)
    assert handler.state_dict() == {"curve": {"rows": [1, 2]}}
    handler.load_state_dict({"curve": {"rows": [7]}})
    fire(handler, 1)
    report = handler.close()
    assert counts.ns == [7, 1]
    assert set(handler.stats().lanes) == {"curve", "bad"}
    assert report.errors[0].callback == "bad"


def test_callbacks_of_one_lane_share_one_fifo_and_one_thread(within: Placement, handlers: Make) -> None:
    log: list[Any] = []

    class Logs:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_batch_end(self, *, n: int) -> None:
            log.append((n, self.name, threading.get_ident()))

        def on_epoch_end(self, *, n: int) -> None:
            log.append((n, self.name, threading.get_ident()))

    shared: dict[str, Any] = {"lane": "files", "placement": within}
    handler = handlers(
        background(Logs("a"), **shared), background(Logs("b"), **shared), background(Logs("c"), **shared)
    )
    for n in range(0, 100, 2):
        handler.call_event("on_batch_end", n=n)
        handler.call_event("on_epoch_end", n=n + 1)
    report = handler.close()
    assert [(n, name) for n, name, _ in log] == [(n, name) for n in range(100) for name in "abc"]
    assert len({thread for _, _, thread in log} | {threading.get_ident()}) == 2
    assert list(handler.stats().lanes) == ["files"]
    assert report.delivered == 300


def test_each_thread_lane_has_one_thread_of_its_own_which_sees_the_contextvars_of_the_start(
    within: Placement, handlers: Make
) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    class Looks:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_batch_end(self) -> None:
            self.seen.append((variable.get(), threading.get_ident()))
            variable.set("by the hook")

    looks = [Looks(), Looks()]
    handler = handlers(background(looks, placement=within))
    variable.set("at the start")
    handler.call_event("on_batch_end")
    variable.set("later")
    handler.call_event("on_batch_end")
    handler.close()
    for one in looks:
        assert [value for value, _ in one.seen] == ["at the start", "by the hook"]
        assert len({thread for _, thread in one.seen}) == 1
    threads = {one.seen[0][1] for one in looks}
    assert len(threads) == (2 if within == "thread" else 1)
    assert threading.get_ident() not in threads
    assert variable.get() == "later"


# ------------------------------------------------------------------------------------------------------ where hooks run


class InBackground(Rows):
    background: Any = {"queue_size": 3, "overflow": "latest"}  # noqa: RUF012


def test_the_class_attribute_puts_a_callback_in_the_background_unless_it_is_inlined(handlers: Make) -> None:
    handler = handlers(InBackground(), inline(InBackground()), background(InBackground(), queue_size=5))
    lanes = handler.stats().lanes
    assert {name: lane.size for name, lane in lanes.items()} == {"in_background": 3, "in_background_2": 5}


def test_options_given_replace_those_of_the_class_one_by_one() -> None:
    record = background(InBackground(), queue_size=5)
    assert (record.options.queue_size, record.options.overflow) == (5, "latest")
    again = background(record, on_error="raise")
    assert again.callback is record.callback
    assert (again.options.queue_size, again.options.overflow, again.options.on_error) == (5, "latest", "raise")


def test_a_record_is_plain_and_picklable() -> None:
    record = background(Counts(), name="x", every={"on_batch_end": 2})
    again = pickle.loads(pickle.dumps(record))
    assert isinstance(again, Background)
    assert again.options == record.options
    assert isinstance(again.callback, Counts)


def test_lists_in_the_list_are_flattened_and_each_callback_of_a_list_has_its_own_lane(handlers: Make) -> None:
    handler = handlers(background([Rows(), Rows()], queue_size=7), [inline([Rows(), [Rows()]]), [InBackground()]])
    assert {name: lane.size for name, lane in handler.stats().lanes.items()} == {
        "rows": 7, "rows_1": 7, "in_background": 3,
    }  # fmt: skip


def test_async_hooks_go_to_the_event_loop_and_the_start_says_so(
    handlers: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sniffio

    class Webhook:
        def __init__(self) -> None:
            self.libraries: list[str] = []

        async def on_batch_end(self) -> None:
            self.libraries.append(sniffio.current_async_library())

    webhooks = []
    for backend in ("asyncio", "trio"):
        monkeypatch.setattr(loop, "backend", backend)
        webhooks.append(Webhook())
        handler = handlers(Rows(), background(webhooks[-1]), background(Rows(), lane="files"))
        with caplog.at_level(logging.INFO, "async_trainer"):
            handler.call_event("on_batch_end")
        handler.close()
    assert [webhook.libraries for webhook in webhooks] == [["asyncio"], ["trio"]]
    line = "callbacks: rows (inline); webhook (task, for its async hooks); rows_1 (thread, lane files)"
    assert [record.getMessage() for record in caplog.records] == [line, line]


def test_a_plain_hook_beside_an_async_one_runs_in_order_with_it(handlers: Make) -> None:
    import anyio

    class Mixed:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        async def on_batch_end(self, *, n: int) -> None:
            await anyio.sleep(0)
            self.rows.append(n)

        def on_epoch_end(self, *, n: int) -> None:
            self.rows.append(n)

    mixed = Mixed()
    handler = handlers(background(mixed))
    for n in range(0, 50, 2):
        handler.call_event("on_batch_end", n=n)
        handler.call_event("on_epoch_end", n=n + 1)
    handler.close()
    assert mixed.rows == list(range(50))
