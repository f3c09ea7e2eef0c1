"""What can't be captured is an error that names the path of the leaf, and the ways out."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import types
import weakref
from typing import Any

import pytest
from torch import nn

from async_trainer.errors import CaptureError
from async_trainer.snapshot import Memo, take
from tests.kinds import State
from tests.nets import Attending
from tests.snapshot.test_objects import Keeper, Stated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: {"config": types.SimpleNamespace(lock=threading.Lock())},
            r"value\['config'\].lock: a _thread.lock can't",
        ),
        (lambda: [1, (i for i in ())], r"value\[1\]: a generator can't be copied"),
        (lambda: threading.Thread(), r"value\._started\._cond\._lock: a _thread.lock can't be copied"),
        (lambda: memoryview(b"x"), r"value: a memoryview can't be copied"),
        (lambda: {"k": State(losses=[0.1, threading.Lock()])}, r"value\['k'\].losses\[1\]: a _thread.lock"),
        (
            lambda: {1: {(3, Stated)}, 2: Keeper().add, 3: iter([]).__next__, 4: sys.__stdout__},
            r"value\[4\].*: an? _io",
        ),
        (lambda: functools.partial(print, threading.Lock()), r"value.*: a _thread.lock can't be copied"),
    ],
)
def test_what_cannot_be_copied_is_named_by_its_path(make: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        take(make(), Memo(), "value")
    assert "capture.register" in str(caught.value)
    assert "select={'value': ...}" in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


def test_too_deep_a_nesting_is_an_error_with_a_short_path() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CaptureError, match="nested too deeply") as caught:
        take(value, Memo(), "value")
    assert len(str(caught.value)) < 400


def test_what_cannot_be_captured_is_named_as_the_user_knows_it() -> None:
    model = nn.Sequential(Attending())
    model[0].attention.out_proj.helper = {"locks": [threading.Lock()]}
    with pytest.raises(CaptureError, match=r"model\.0\.attention\.out_proj\.helper\['locks'\]\[0\]: a _thread\.lock"):
        take(model, Memo(), "model")


def test_an_error_holds_nothing_once_it_is_dropped() -> None:
    live = Keeper()
    live.model = nn.Linear(2, 2)
    live.lock = threading.Lock()
    gone = weakref.ref(live.model.weight)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(CaptureError):
            take({"k": [live]}, Memo(), "value")
        del live
        assert gone() is None
    finally:
        gc.enable()
