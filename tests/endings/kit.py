"""What the scripts of these tests are made of; they import it in a process of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from async_trainer import Callback
from async_trainer.runtime import loop

FOREVER = 1000.0  # s


class Rows(Callback):
    """Appends each step to the file ``rows``, after ``pause`` seconds: what is in it was delivered."""

    background: dict[str, Any] = {}  # noqa: RUF012  (in the background, whatever the options)

    def __init__(self, path: str = "rows", pause: float = 0.0) -> None:
        self.path = path
        self.pause = pause

    def on_batch_end(self, *, step: Any) -> None:
        if self.pause:
            time.sleep(self.pause)
        write_row(step, self.path)


class AsyncRows(Rows):
    """The same, on the loop."""

    async def on_batch_end(self, *, step: Any) -> None:  # type: ignore[override]
        import anyio

        await anyio.sleep(self.pause)
        write_row(step, self.path)


def write_row(row: Any, path: str = "rows") -> None:
    """In one write, that needs no flush and no buffer."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{row}\n".encode())
    os.close(file)


def wait_for_a_row(*paths: str) -> None:
    """Until a whole row is in each of ``paths``: a file is there before its first row is."""
    for path in paths or ("rows",):
        while not (os.path.exists(path) and os.path.getsize(path)):
            time.sleep(0.001)


def tell(word: str) -> None:
    """Tell the test, which waits for ``word``."""
    os.write(1, f"{word}\n".encode())


def tell_when_in(word: str, *functions: str) -> None:
    """Tell the test ``word`` once the main thread waits inside one of ``functions``."""
    main = threading.main_thread().ident

    def watch() -> None:
        while True:
            frame: Any = sys._current_frames().get(main)  # type: ignore[arg-type]
            waits = frame is not None and frame.f_code.co_name == "wait"
            while frame is not None and frame.f_code.co_name not in functions:
                frame = frame.f_back
            if frame is not None and waits:
                return tell(word)
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()


# Hooks that never return.


def sleeps() -> None:
    time.sleep(FOREVER)


def waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def loops_in_python() -> None:
    n = 0
    while True:
        n += 1


def copies_tensors() -> None:
    import torch

    source, target = torch.ones(2_000_000), torch.empty(2_000_000)
    while True:
        target.copy_(source)


def waits_for_an_executor() -> None:
    from concurrent.futures import ThreadPoolExecutor

    ThreadPoolExecutor(1).submit(time.sleep, FOREVER).result()


async def sleeps_async() -> None:
    import anyio

    await anyio.sleep(FOREVER)


async def swallows_cancellation() -> None:
    import anyio

    while True:
        try:
            await anyio.sleep(FOREVER)
        except BaseException:
            if loop.backend == "asyncio":
                asyncio.current_task().uncancel()  # type: ignore[union-attr]


async def sleeps_in_a_worker_thread() -> None:
    import anyio

    await anyio.to_thread.run_sync(time.sleep, FOREVER)


async def sleeps_in_an_asyncio_thread() -> None:
    await asyncio.to_thread(time.sleep, FOREVER)


async def blocks_the_loop() -> None:
    time.sleep(FOREVER)


class Hangs(Callback):
    """Enters ``function`` at the first event, having said so."""

    background: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, function: Callable[[], Any]) -> None:
        self.entered = threading.Event()
        self._function = function

    def on_batch_end(self, **kwargs: Any) -> None:
        self.entered.set()
        self._function()


class HangsAsync(Hangs):
    """The same, on the loop."""

    async def on_batch_end(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.entered.set()
        await self._function()


def hangs(name: str) -> Hangs:
    """A callback that never returns from the function of that ``name``."""
    function = globals()[name]
    return HangsAsync(function) if asyncio.iscoroutinefunction(function) else Hangs(function)


if len(sys.argv) > 1 and sys.argv[1] in ("asyncio", "trio"):
    loop.backend = sys.argv[1]
