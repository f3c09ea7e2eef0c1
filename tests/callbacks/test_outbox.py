"""Outbox: rows are sent in order and once, wait while a service is away, and are counted where they can't be sent."""

from __future__ import annotations

import email.utils
import logging
import time

import pytest

from async_trainer.callbacks.outbox import LONGEST_ASKED, LONGEST_WAIT, SEND_SECONDS, Outbox, SinkError, asked_for


class Service:
    """Takes rows, unless ``error`` is set; its clock goes when told to."""

    def __init__(self, *, batch: int = 3, limit: int = 10) -> None:
        self.now = 0.0
        self.error: SinkError | None = None
        self.taken: list[int] = []
        self.attempts: list[float] = []
        self.outbox = Outbox("Test", self.take, batch=batch, limit=limit, clock=lambda: self.now)

    def take(self, rows: list[int]) -> None:
        self.attempts.append(self.now)
        if self.error is not None:
            raise self.error
        assert len(rows) <= 3
        self.taken += rows


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        ("²", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_a_retry_after_that_makes_no_sense_asks_for_nothing(header: str | None, seconds: int) -> None:
    assert asked_for(header) == seconds


def test_a_retry_after_may_be_a_date() -> None:
    assert 50 < asked_for(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60


def test_a_service_that_asks_to_be_left_alone_for_years_is_asked_after_minutes() -> None:
    service = Service()
    service.error = SinkError("429", retry_after=99_999_999.0)
    service.outbox.add([1])
    service.outbox.send_soon()
    service.error, service.now = None, service.now + LONGEST_ASKED
    service.outbox.send_soon()
    assert service.taken == [1]


def test_rows_that_are_dropped_or_refused_are_told_of_once() -> None:
    lost: list[int] = []
    service = Service(limit=3)
    service.outbox = Outbox("Test", service.take, batch=2, limit=3, lose=lost.extend, clock=lambda: service.now)
    service.error = SinkError("away")
    service.outbox.add(range(5))
    assert lost == [0, 1]
    service.error = SinkError("no", final=True)
    service.outbox.send_soon()
    assert lost == [0, 1, 2, 3, 4]
    assert (service.outbox.dropped, service.outbox.refused) == (2, 3)


def test_what_is_not_there_at_the_end_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(limit=3)
    service.error = SinkError("Test: refused")
    with pytest.raises(SinkError, match=r"^Test: refused; nothing can be sent$"):
        service.outbox.send_all()
    for row in range(5):
        service.outbox.add([row])
    with pytest.raises(SinkError, match=r"^Test: refused; 3 rows are not there, 2 more were dropped, 0 refused$"):
        service.outbox.send_all()
    assert [record.message for record in caplog.records] == [
        "Test: refused; it is tried again later",
        "Test: 3 rows wait; the oldest are dropped for those that come",
    ]


def test_rows_wait_for_a_second_or_for_others_and_go_in_order() -> None:
    service = Service()
    for row in (1, 2):
        service.outbox.add([row])
        service.outbox.send_due()
    assert service.taken == []
    service.outbox.add([3])
    service.outbox.send_due()
    assert service.taken == [1, 2, 3]
    service.outbox.add([4])
    service.now += SEND_SECONDS
    service.outbox.send_due()
    assert service.taken == [1, 2, 3, 4]
    service.outbox.add(range(5, 12))
    service.outbox.send_soon()
    assert service.taken == [*range(1, 12)]
    assert service.outbox.waiting == []


def test_a_service_that_is_away_is_asked_ever_more_seldom_and_gets_all_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(limit=1000)
    service.error = SinkError("Test: refused")
    with caplog.at_level(logging.INFO, "async_trainer"):
        for row in range(400):
            service.now += 0.5
            service.outbox.add([row])
            service.outbox.send_due()
            service.outbox.send_soon()
        assert service.attempts == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5, 151.5, 181.5]
        assert service.attempts[-1] - service.attempts[-2] == LONGEST_WAIT
        assert len(caplog.records) == 1
        service.error = None
        service.now += LONGEST_WAIT
        service.outbox.send_due()
    assert service.taken == [*range(400)]
    assert [record.message for record in caplog.records] == [
        "Test: refused; 1 rows wait, and are sent later",
        "Test: the service is back",
    ]
    service.outbox.check_complete()


def test_it_is_left_alone_for_as_long_as_it_asks() -> None:
    service = Service()
    service.error = SinkError("429", retry_after=100.0)
    service.outbox.add([1])
    service.outbox.send_soon()
    service.error, service.now = None, 99.0
    service.outbox.send_soon()
    assert service.taken == []
    service.now = 100.0
    service.outbox.send_soon()
    assert service.taken == [1]


def test_beyond_the_limit_the_oldest_are_dropped_and_at_the_end_it_says_how_many() -> None:
    service = Service(limit=4)
    service.error = SinkError("away")
    for row in range(6):
        service.outbox.add([row])
        service.outbox.send_due()
    with pytest.raises(SinkError, match="away"):
        service.outbox.send_all()
    assert repr(service.outbox) == "<Outbox: 4 waiting, 2 dropped, 0 refused>"
    service.error = None
    service.outbox.send_all()
    assert service.taken == [2, 3, 4, 5]
    with pytest.raises(SinkError, match="2 rows were dropped"):
        service.outbox.check_complete()


def test_what_is_refused_for_good_holds_up_nothing_and_is_counted() -> None:
    service = Service()
    service.outbox.add([1, 2, 3])
    service.error = SinkError("too long", final=True)
    service.outbox.send_soon()
    service.error = None
    service.outbox.add([4])
    service.outbox.send_all()
    assert service.taken == [4]
    with pytest.raises(SinkError, match="3 were refused"):
        service.outbox.check_complete()
