"""What runs in the child of a process lane: the runtime of this package, fed by the parent.

Started with the descriptor of the connection as its last argument. Its main thread receives; the lane's hooks run
on a thread of the pool's, or on its loop, as they would in the parent; a third thread answers. It ends when the
connection does, after handling what it was sent, within the deadline that the parent has named.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from async_trainer.attach import Attached
from async_trainer.callback import Inline, Options
from async_trainer.errors import EventLostError
from async_trainer.hooks import find_hooks
from async_trainer.process.answers import DELIVERED, Answers
from async_trainer.process.elsewhere import said_by
from async_trainer.process.heard import ToParent, set_warning_filters
from async_trainer.process.pickling import REMEDY, Packer, pack_error, pack_result, pickled_attributes
from async_trainer.process.remade import define, mapped, unpack
from async_trainer.process.ship import Shipper
from async_trainer.process.tasks import HookHere, Missing, Quiet, Refused, Task
from async_trainer.routes import Arrangement, HookTask, Plan, Snapshot
from async_trainer.runtime.failures import told
from async_trainer.runtime.job import Mark, Owner
from async_trainer.runtime.lane import Ending, Lane
from async_trainer.runtime.listening import LaneEvent
from async_trainer.runtime.pool import Pool
from async_trainer.runtime.wire import Wire
from async_trainer.states import Visit

QUIET = 0.05  # s: without work, before a state is sent
OFTEN = 1.0  # s: between two states, while there is work
SELDOM = 10  # times what the last state took, at least
clock = time.perf_counter


class Child(Answers):
    """The child: receives, runs, answers."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._attached: dict[str, Attached] = {}
        self._tasks: dict[Hashable, Task] = {}
        self._targets: dict[str, Any] = {}
        self._plans: dict[int, Plan] = {}
        self._sent_attributes: dict[str, dict[str, int]] = {}
        self._held: int | None = None
        self._covered = 0
        self._covered_at = self._settled_at = clock()
        self._state_wanted = False
        self._state_coming = False
        self._stateful = False
        self._state_failed = False
        self._reading = ""  # the callback whose state is being taken
        self._state_seconds = 0.0  # that the last one took
        self.is_async = False
        self.pool: Any = None
        self.deadline = 20.0

    # ---------------------------------------------------------------------------------------------- the main thread

    def run(self) -> None:
        """Receive, until the other end is gone."""
        mapped.ring = self._ring
        os.register_at_fork(after_in_child=self._let_go)  # who is forked by a hook must not keep the parent waiting
        while (received := self._wire.receive()) is not None:
            frame, descriptors = received
            for kind, *rest in pickle.loads(frame):
                if kind == "segment":
                    mapped.add(rest[0], rest[1], descriptors.pop(0))
                elif kind == "hold":
                    self._hold(descriptors.pop(0))
                else:
                    getattr(self, f"_on_{kind}")(*rest)
        self._leave()

    def _let_go(self) -> None:
        self._wire.forget()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _hold(self, descriptor: int) -> None:
        """A lock of the parent's is held until this process has ended: who goes on with its files waits."""
        if self._held is not None:
            os.close(self._held)
        self._held = descriptor

    def _on_hello(self, about: Mapping[str, Any]) -> None:
        sys.path[:] = about["path"]
        sys.argv[:] = about["argv"]
        self.deadline = about["deadline"]
        self.is_async = about["async"]
        root = logging.getLogger()
        root.setLevel(about["level"])
        for name, level in about["levels"].items():
            logging.getLogger(name).setLevel(level)
        root.addHandler(ToParent(self.say))
        set_warning_filters(about["warnings"])
        self.pool = Pool(
            max_workers=sys.maxsize, max_bytes=sys.maxsize, stall_timeout=float("inf"), switch_interval=None,
            shutdown_timeout=self.deadline, synchronous=False,
        )  # fmt: skip
        self.pool.failures = Quiet()
        self.lane = Lane(about["lane"], size=sys.maxsize, placement="task" if self.is_async else "thread")
        self.pool.add_lane(self.lane)
        self.pool.start()
        self._answering.start()

    def _on_ready(self) -> None:
        """It has all that it needs. The next child would begin with the state of this one."""

        def passed(*_: Any) -> None:
            try:
                self._send_state()
            except Exception:  # there may be none before the training starts
                pass
            self.say(("ready",))

        self._visit_with(None, passed)

    def _on_callbacks(self, pickled: bytes, names: list[tuple[str, Owner, tuple[str, ...]]]) -> None:
        try:
            callbacks = pickle.loads(pickled)
        except Exception as error:
            for name, owner, events in names:
                for event in events:
                    self._tasks["hook", name, event] = Task(self, Missing(name, event, said_by(error)), owner)
            return
        for callback, (name, owner, events) in zip(callbacks, names, strict=True):
            self._attach(callback, name, owner, events)

    def _attach(self, callback: Any, name: str, owner: Owner, events: tuple[str, ...]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has said it
            hooks = find_hooks(callback, events)
        self._attached[name] = Attached(name, Inline(callback), hooks, owner=owner, lane=self.lane)
        self._stateful = self._stateful or callable(getattr(callback, "state_dict", None))
        for event, hook in hooks.items():
            task = HookTask(hook, owner, Options(), self.lane)
            self._tasks["hook", name, event] = Task(self, HookHere(task), owner)
        self._sent_attributes[name] = {key: hash(held) for key, held in pickled_attributes(callback).items()}

    def _on_object(self, name: str, pickled: bytes, made: bool, owner: Owner) -> None:
        from async_trainer.process.calls import Target
        from async_trainer.proxy.handle import Returned

        Returned.known = self._targets
        self._targets[name] = Target(name, pickled, made, owner)

    def _on_time(self) -> None:
        """Somebody listens: tell from now on when each hook ran. The clock is the system's, so the parent's too."""
        self.pool.listeners = (self,)

    def lane_event(self, event: LaneEvent) -> None:
        """A hook has ended. The lane's thread, before :meth:`settled`."""
        self._spans.append((event.seq, event.callback, event.began, event.ended))

    def _on_define(self, number: int, pickled: bytes) -> None:
        define(number, pickled)

    def _on_plan(self, number: int, pickled: bytes) -> None:
        state_place, arrangements = unpack(pickled)
        found: dict[HookTask, Arrangement] = {}
        for key, arrangement in arrangements.items():
            held: Any = self._tasks[key]._held
            found[held._task] = arrangement
        self._plans[number] = Plan((), found, (), state_place)

    def _on_forget(self, numbers: list[int]) -> None:
        for number in numbers:
            mapped.forget(number)

    def _on_drop(self, numbers: list[int]) -> None:
        for target in self._targets.values():
            target.drop(numbers)

    def _on_event(
        self, seq: int, keys: list[Any], sent: Any, buffers: list[Any] | None, again: bool, attempts: Any
    ) -> None:
        payload = self._payload(sent, buffers, again)
        targets = []
        for place, key in enumerate(keys):
            task = self._tasks.get(key) or self._call(key)
            if attempts is not None and attempts[place]:
                task = Task(self, task._held, task.owner, attempts[place])
            targets.append((self.lane, task))
        self.pool.seq = seq - 1
        self.pool.push(targets, payload)

    def _payload(self, sent: Any, buffers: list[Any] | None, again: bool) -> Any:
        try:
            value = sent if buffers is None else unpack(sent, buffers)  # plain: made again with its frame
        except Exception as error:
            return Refused(f"what it names can't be made again in its process ({said_by(error)}): {REMEDY}")
        if isinstance(value, str):
            return Refused(value)
        if len(value) == 2:
            from async_trainer.process.calls import Arguments

            return Arguments(*value)
        number, values, errors = value
        plan = self._plans[number]
        by_task = None
        if errors:
            by_task = {task: errors[task.name] for task in plan.arrangements if task.name in errors}
        snapshot = Snapshot(plan, clock(), values, None, by_task)
        snapshot.redelivered = again
        return snapshot

    def _call(self, key: Any) -> Task:
        """The task of one call of a proxied object."""
        from async_trainer.process.calls import CallHere

        _, name, number, source, path, action = key
        target = self._targets[name]
        held = CallHere(target, number, source, path, action, self.is_async)
        return Task(self, held, target.owner)

    def _on_load(self, pickled: bytes) -> None:
        """The state to go on from, as an earlier child has sent it."""
        states = pickle.loads(pickled)
        ones = tuple(self._attached[name] for name in states if name in self._attached)
        self._visit_with(Visit("load", ones, states), self._ignore)

    def _on_visit(self, how: str | None, pickled: bytes) -> None:
        states = unpack(pickled)
        ones = tuple(self._attached.values())
        visit = Visit(how, ones, states) if how is not None else None

        def passed(found: Any, error: BaseException | None) -> None:
            packed = None
            try:
                packed = Packer().pack(found)[0]
                if how is None:
                    self._send_attributes()
                if how == "read" and error is None:
                    self._covered_by(packed)
                else:
                    self._send_state()
            except Exception as raised:  # state_dict() is the callback's own code
                error = error or raised
            self.say(("passed", packed, None if error is None else pack_error(error, told(error))))

        self._visit_with(visit, passed)

    def _on_cover(self) -> None:
        self._state_wanted = True
        self._ring()

    def _on_end(self) -> None:
        def passed(*_: Any) -> None:
            self._send_attributes()

        self._visit_with(None, passed)

    def _visit_with(self, visit: Any, passed: Callable[[Any, BaseException | None], None]) -> None:
        with self.pool._lock:
            self.lane.mark(Mark(visit, passed))
            self.pool._rouse(self.lane, clock())

    @staticmethod
    def _ignore(_: Any, error: BaseException | None) -> None:
        if error is not None:
            logging.getLogger("async_trainer").error("a state could not be loaded again: %s", told(error))

    def _leave(self) -> None:
        """The parent has hung up, or is no more."""
        watch = threading.Timer(self.deadline, os._exit, (1,))
        watch.daemon = True
        watch.start()
        if self.pool is not None:
            self.pool.close(self.deadline)
        self._ending = True
        self._ring()
        if self._answering.ident is not None:
            self._answering.join(self.deadline)
        self._wire.close()

    # ---------------------------------------------------------------------------------------------- the lane's thread

    def settled(self, result: Any, error: BaseException | None) -> None:
        """A job has ended."""
        self._handled += 1
        self._settled_at = clock()
        if error is None and result is None:
            self._out.append(DELIVERED)
        elif error is None:
            self._out.append(("settled", Ending.DELIVERED.value, 1, 1, pack_result(result), None))
        elif isinstance(error, EventLostError):
            self._out.append(("settled", Ending.DROPPED.value, 1, 1, None, None))
        else:
            failures = self.pool.failures
            packed = pack_error(error, failures.text)
            self._out.append(("settled", Ending.FAILED.value, 1, failures.attempt, None, packed))
        self._ring()

    def _send_state(self) -> None:
        """On the lane's thread, between two jobs."""
        self._state_coming = False
        if not self._stateful:
            return
        states: dict[str, Any] = {}
        for name, one in self._attached.items():
            state_dict = getattr(one.callback, "state_dict", None)
            if callable(state_dict):
                self._reading = name
                states[name] = state_dict()
        self._covered_by(Packer().pack(states)[0])

    def _covered_by(self, states: bytes) -> None:
        self._state_failed = False
        self.say(("covered", states))
        self._covered, self._covered_at = self._handled, clock()

    def _send_attributes(self) -> None:
        changed: dict[str, dict[str, bytes]] = {}
        for name, one in self._attached.items():
            sent = self._sent_attributes[name]
            for key, pickled in pickled_attributes(one.callback).items():
                if sent.get(key) != hash(pickled):
                    sent[key] = hash(pickled)
                    changed.setdefault(name, {})[key] = pickled
        if changed:
            self.say(("attributes", changed))

    # -------------------------------------------------------------------------------------------- the answering thread

    def _until_due(self) -> float:
        """s: to look again; -1: when the bell rings."""
        state_due = self._stateful and self._covered != self._handled and not self._state_coming
        return QUIET if state_due or self._took_of != self._handled else -1

    def _before_answer(self) -> None:
        """Have the lane's thread send a state, when it has come to rest, each second, and when the parent asks."""
        if not self._stateful or self._covered == self._handled or self._state_coming:
            return
        now = clock()
        resting = not self.lane.busy and now - self._settled_at >= QUIET
        seldom = now - self._covered_at > max(OFTEN, SELDOM * self._state_seconds)
        if self._state_wanted or seldom or (resting and not self._state_failed):
            self._state_coming = True
            self._state_wanted = False

            def passed(*_: Any) -> None:
                began = clock()
                try:
                    self._send_state()
                except Exception as error:
                    if not self._state_failed:
                        logging.getLogger("async_trainer").error(
                            "%s.state_dict() failed: should its process die, another goes on from the state before: %s",
                            self._reading, told(error),
                        )  # fmt: skip
                    self._state_failed = True
                    self._covered_at = clock()  # another try comes later
                    self.say(("covered", None))
                self._state_seconds = clock() - began

            self._visit_with(None, passed)


def main() -> None:
    """Run until the parent hangs up."""
    Shipper.inside = True
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # schedulers warn whole process groups
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    end = socket.socket(fileno=int(sys.argv.pop()))
    Child(Wire(end)).run()
