"""CallbacksHandler: fires events. Inline hooks run at once; background hooks get a snapshot, on their lanes.

Longer than other files: half of it is the documentation of the public interface, and the rest, but for the way of an
event, hands on to where it is done.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar, Unpack, overload

from async_trainer.attach import Attached, attach_all
from async_trainer.callback import Background, BackgroundOptions, Inline, flatten
from async_trainer.emit import Targets, small_kinds, take_chosen, take_small, take_values
from async_trainer.errors import ConfigurationError, what_ended
from async_trainer.events import (
    EVALUATION_STARTS,
    ONCE_PER_RUN,
    RUN_ENDS,
    RUN_STARTS,
    TRAINING_RUNS,
    TRAINING_STARTS,
    Event,
)
from async_trainer.explain import Explanation, explain, tell_costs
from async_trainer.holders import refuse_holders
from async_trainer.hooks import ALL_EVENTS, check_training, tolerated
from async_trainer.plan import check_names, make_plan
from async_trainer.proxy import MISSING, Proxied, make_proxy
from async_trainer.routes import EventInfo, HookTask, Plan, Route, Snapshot
from async_trainer.runtime import exits
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.listening import Listener
from async_trainer.runtime.pool import Pool, current_lane
from async_trainer.runtime.stats import Report, Stats
from async_trainer.settings import check_settings
from async_trainer.snapshot import Store, capture
from async_trainer.states import check_states, load_state, read_state, visits, warn_of_no_resume
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.unheard import warn_of_unheard

if TYPE_CHECKING:
    from async_trainer.process.home import Home
    from async_trainer.resume.checkpoint import Checkpoint, Checkpoints
    from async_trainer.watching.publisher import Publisher
    from async_trainer.watching.tape import Tape

logger = logging.getLogger("async_trainer")
T = TypeVar("T")
clock = time.perf_counter

PLAIN_VALUES = (bool, int, float, str)
BOUNDARIES = ONCE_PER_RUN | EVALUATION_STARTS | TRAINING_STARTS


class CallbacksHandler:
    """Runs callbacks on the events of a training loop: inline, or in the background on snapshots.

    ::

        handler = CallbacksHandler([EarlyStopping(), background(TensorBoardLog("runs")), background(Plots())])
        with handler:
            for ...:
                loss = ...
                handler.call_event("on_batch_end", state=state, loss=loss)

    Args:
        callbacks: objects with hooks, wrapped in ``background(...)`` or ``inline(...)``, or not (then inline, unless
            their class says otherwise). Lists in the list are flattened.
        events: names of further events (``["on_rollout_end"]``), beside those of :class:`Event`.
        max_workers: how many lanes run a hook at once; a stalled one doesn't count.
        max_snapshot_bytes: how many bytes of big values (over 64 KiB) the snapshots may hold. A larger one goes alone.
        stall_timeout: seconds after which a lane that handles nothing is stalled: it holds up nobody any more.
        shutdown_timeout: seconds that the end may take after an exception or a signal.
        switch_interval: seconds; ``sys.setswitchinterval`` while thread lanes are busy, so that their Python code
            gives the interpreter back to the training thread soon. None leaves it alone.
        synchronous: handle the same snapshots on the spot, and raise the hooks' errors there: for debugging.
        timeline: a run that publishes what it does (see :meth:`publish`; a Trainer's does) leaves a trace of it, too.

    It starts at the first event, or where it is entered as a context manager; leaving that drains it. ``call_event``,
    ``flush``, ``barrier`` and ``close`` may be called from any thread. A copied or pickled handler is its unstarted
    list of callbacks.

    Raises:
        ConfigurationError: a callback or an option that can't work; names it, and the remedy.
    """

    _fires_events = True  # so a callback in a process can't hold it

    @refuse_unknown_options
    def __init__(
        self,
        callbacks: Iterable[Any] = (),
        *,
        events: Iterable[str] = (),
        max_workers: int = 8,
        max_snapshot_bytes: int = 2 << 30,
        stall_timeout: float = 60.0,
        shutdown_timeout: float = 20.0,
        switch_interval: float | None = 1e-5,
        synchronous: bool = False,
        timeline: bool = False,
    ) -> None:
        self._settings = check_settings(
            events=events,
            max_workers=max_workers,
            max_snapshot_bytes=max_snapshot_bytes,
            stall_timeout=stall_timeout,
            shutdown_timeout=shutdown_timeout,
            switch_interval=switch_interval,
            synchronous=synchronous,
            timeline=timeline,
        )
        self._pool = Pool(
            max_workers=max_workers,
            max_bytes=max_snapshot_bytes,
            stall_timeout=stall_timeout,
            shutdown_timeout=shutdown_timeout,
            switch_interval=switch_interval,
            synchronous=synchronous,
        )
        self._store = Store(max_snapshot_bytes, self._pool.waited, overlap=not synchronous)
        self._pool.store = self._store
        self._events = (*ALL_EVENTS, *self._settings["events"])
        self._routes: Mapping[str, Route | None] = {}  # None: it was fired, and nobody hears it
        # By name, in list order. Closed to those who look into a callback that holds its handler (see refuse_holders).
        self._attached: Mapping[str, Attached] = MappingProxyType({})
        self._proxied: list[Proxied] = []
        self._started = False
        self._starting = threading.RLock()
        self._stage = "training"
        self._provided: Mapping[str, Any] = MappingProxyType({})  # by the run's start: its later hooks may name it
        self._report: Report | None = None
        self._checkpoints: Checkpoints | None = None
        self.resumable: Any = None  # a Trainer's training under way, for TrainingCheckpoint
        self._inside = False  # inline hooks are running
        self._restored = False  # and no run has started since
        self._forked = False  # this is a forked child, where no hook runs
        self._told_of_unheard = False
        self._wanted: list[Callable[[], None]] = []  # checkpoints that inline hooks have asked for
        self._publishers: tuple[Publisher, ...] = ()
        self._tapes: tuple[Tape, ...] = ()  # theirs: what this thread does is noted there
        self._end = weakref.finalize(self, self._pool.end, abandon=False)  # a dropped handler drains
        self._end.atexit = False  # exits.py does that, with its bounds
        self.add_callbacks(callbacks)

    def __repr__(self) -> str:
        background = sum(one.lane is not None for one in self._attached.values())
        return f"<CallbacksHandler: {len(self._attached) - background} inline, {background} background, {self._pool!r}>"

    # ------------------------------------------------------------------------------------------------------- events

    def call_event(self, event: Event | str, /, *misplaced: Never, **arguments: Any) -> None:
        """Fire ``event``: run its inline hooks, in list order, then capture what its background hooks name, once, and
        push it to all their lanes at once. The training thread.

        Args:
            event: one of :class:`Event`, or declared with ``events=``.
            **arguments: whatever the loop has to tell; hooks name those that they need. The arguments of an event that
                starts a run (``on_train_start``, ``on_resume``, ...) may be named by every later hook of that run.

        Raises:
            ConfigurationError: there is no such event; an argument without its name; or, at the first event that shows
                it, a background callback that holds the run's own model or optimizer.
            LaneError: a background hook with ``on_error="raise"`` has failed.
            Exception: what an inline hook raised.
        """
        if misplaced:
            raise ConfigurationError(
                f"call_event takes an event's arguments by keyword: call_event({event!r}, loss=loss); those in a dict "
                "as **arguments"
            )
        if not self._started:
            self._start()
        try:
            route = self._routes[event]
        except (KeyError, TypeError):  # TypeError: what can't be hashed
            if event in self._events:
                with self._starting:
                    self._routes = {**self._routes, event: None}
                return
            hint = suggestion(event, self._events) if isinstance(event, str) else ""
            raise ConfigurationError(
                f"there is no event {event!r}{hint} (an event of your own is declared with CallbacksHandler(..., "
                "events=[...]))"
            ) from None
        if route is None:
            return
        if self._pool.failures.to_raise and event != Event.EXCEPTION and current_lane.get() is None:
            raise self._pool.failures.to_raise.popleft()  # the loop's to see, not another hook's
        if route.boundary:
            self._enter(route, arguments)
        if route.inline:
            self._inside = True
            began = clock() if self._tapes else 0.0
            try:
                for hook in route.inline:
                    self._call_inline(hook, arguments)
            except BaseException:
                self._wanted.clear()  # the event reaches no lane: no cut could hold it
                raise
            finally:
                self._inside = False
                for tape in self._tapes if began else ():
                    tape.inline(event, began)
        if route.tasks:
            self._emit(route, arguments)
        if self._wanted:
            self._take_wanted()
        if route.boundary and event in RUN_ENDS:
            self._provide({})

    def _call_inline(self, hook: Any, arguments: dict[str, Any]) -> None:
        check_names(hook.event, arguments)
        live = hook.live_arguments(arguments, self._provided)
        if "event" in hook.names or hook.catches_all:
            live["event"] = EventInfo(hook.event, self._pool.seq + 1, 1)
        hook.function(**live)

    def _emit(self, route: Route, arguments: dict[str, Any]) -> None:
        began = clock()
        plan = route.plans.get(tuple(arguments)) or self._plan(route, arguments)
        pool = self._pool
        if plan.direct:
            targets: Targets = plan.targets
            values, lease, errors = take_small(plan, arguments), None, None
            if values is None:
                values, lease = take_values(pool, map(arguments.__getitem__, plan.names), plan)
        else:
            targets, values, lease, errors = take_chosen(pool, plan, arguments, self._provided, self._stage)
        snapshot = None if values is None else Snapshot(plan, began, values, lease, errors)
        spent = clock() - began
        route.seconds += spent
        if self._tapes:
            for tape in self._tapes:
                tape.capture(route.event, began, spent)
        if snapshot is None:
            if targets:
                pool.drop(targets)
            route.skipped += spent
            return
        if not route.captures:
            route.first = spent
        route.captures += 1
        if route.seconds > route.tell_at:
            tell_costs(route)
        if lease is None:
            pool.push(targets, snapshot)
            return
        route.overlaps = route.overlaps or lease.transfer is not None
        try:
            pool.push(targets, snapshot)
        finally:
            pool.release(lease)

    def _plan(self, route: Route, arguments: dict[str, Any]) -> Plan:
        live = [*self._provided.values(), *arguments.values()]
        refuse_holders(self._attached.values(), live)
        self._store.watch(live)
        route.fired = True
        plan = make_plan(route.tasks, route.event, arguments, self._provided)
        for slot in plan.slots:
            if slot.select is None and not slot.plain_only:
                value = (self._provided if slot.from_run else arguments)[slot.name]
                kind = capture.kind(type(value))
                route.observed[slot.name] = (kind.how, kind.size(value) if kind.size else 0)
        if plan.direct:
            plan.small = small_kinds(plan.names, arguments)
        route.plans[tuple(arguments)] = plan
        return plan

    def _enter(self, route: Route, arguments: dict[str, Any]) -> None:
        """An event at which a run starts or ends, or the stage changes; or one that somebody notes."""
        for tape in self._tapes:
            tape.event(route.event)
        if route.event not in BOUNDARIES:
            return
        route.fired = True
        if route.event in RUN_STARTS or route.event == Event.TRAINER_INIT:
            check_names(route.event, arguments)
            exits.goes_on(self._pool)
            self._provide(arguments)
            refuse_holders(self._attached.values(), arguments.values())
            resume = self._routes[Event.RESUME]
            if self._restored and route.event == Event.TRAIN_START and resume is not None and resume.heard:
                logger.warning("on_train_start after restore(): logs begin anew; on_resume is for a run that goes on")
            self._restored = False
            if route.event == Event.RESUME:
                warn_of_no_resume(self._attached.values())
            if route.event in TRAINING_RUNS:
                check_training(((one.name, one.callback) for one in self._attached.values()), arguments)
        if route.event in EVALUATION_STARTS:
            self._stage = "evaluation"
        elif route.event in TRAINING_STARTS:
            self._stage = "training"

    def _provide(self, arguments: Mapping[str, Any]) -> None:
        self._provided = MappingProxyType(dict(arguments))
        for route in self._routes.values():
            if route is not None:
                route.plans.clear()

    # ---------------------------------------------------------------------------------------- callbacks and the start

    def add_callbacks(self, callbacks: Iterable[Any]) -> None:
        """Attach more callbacks, also while running: they get the events from now on.

        Raises:
            ConfigurationError: as for the constructor; then none of them is attached.
        """
        pool = self._pool
        new = attach_all(
            flatten(callbacks), self._attached.values(), pool.lanes, self._events, synchronous=pool.synchronous
        )
        attached = {**self._attached, **{one.name: one for one in new}}
        routes = {event: self._empty_route(event) for event in self._events}
        for one in new:
            if one.lane is not None and one.lane.placement == "process":
                self._home(one.lane).attach(one)
        for one in attached.values():
            if one.lane is not None and one.lane.name not in self._pool.lanes:
                self._add_lane(one.lane)
            for event, hook in one.hooks.items():
                if one.lane is None:
                    routes[event].inline.append(hook if event != Event.EXCEPTION else tolerated(hook))
                else:
                    routes[event].tasks.append(self._task(event, one, hook))
        self._attached = MappingProxyType(attached)
        with self._starting:  # another thread may note that an event was fired
            unheard = {event: None for event, route in self._routes.items() if route is None}
            self._routes = unheard | {event: route for event, route in routes.items() if route.wanted}

    def _empty_route(self, event: str) -> Route:
        old = self._routes.get(event)
        route = Route(event, boundary=event in BOUNDARIES or any(event in tape.events for tape in self._tapes))
        if old is not None:  # what it cost so far goes on to count
            route.captures, route.seconds, route.observed = old.captures, old.seconds, old.observed
            route.first, route.skipped, route.fired = old.first, old.skipped, old.fired
            route.tell_at, route.overlaps = old.tell_at, old.overlaps
        return route

    def _home(self, lane: Lane) -> Home:
        """Of a process lane: what its child is told. Its worker looks there."""
        if lane.remote is None:
            from async_trainer.process.home import Home

            lane.remote = Home(self._pool, lane)
        home: Home = lane.remote
        return home

    def _add_lane(self, lane: Lane) -> None:
        self._pool.add_lane(lane)
        if self._started:
            self._pool.start()

    def _task(self, event: str, one: Attached, hook: Any) -> HookTask:
        old = self._routes.get(event)
        for task in old.tasks if old is not None else ():
            if task.hook is hook:  # its counts go on
                return task
        assert one.owner is not None
        assert one.options is not None
        assert one.lane is not None
        return HookTask(hook, one.owner, one.options, one.lane)

    def _start(self) -> None:
        with self._starting:  # of several threads that fire at first, none goes on before the lanes have their workers
            if self._started:
                return
            exits.inert_in_child(self)
            if self._pool.lanes:
                self._pool.start()
            self._started = True
        everyone: list[Attached | Proxied] = [*self._attached.values(), *self._proxied]
        if everyone:
            logger.info("callbacks: %s", "; ".join(f"{one.name} ({one.why})" for one in everyone))

    def after_fork(self) -> None:
        """In a forked child (a DataLoader's worker, say) no hook runs. Called by the interpreter."""
        for publisher in self._publishers:
            publisher.after_fork()
        self._forked = True
        self._started = True
        self._routes = _Silence()
        self._attached = MappingProxyType({})
        self._checkpoints = None
        self._pool.after_fork()

    def _refuse_in_fork(self, what: str) -> None:
        """What would write over the files of the parent, without its callbacks' states."""
        if self._forked:
            raise ConfigurationError(
                f"{what}() in a forked child: this handler is its parent's, and runs nothing here; call {what}() where "
                "the training is, or make a handler of this process's own"
            )

    # ------------------------------------------------------------------------------------------ waiting, and the end

    @overload
    def proxy(self, target: T, **options: Unpack[BackgroundOptions]) -> T: ...
    @overload
    def proxy(self, *, factory: Callable[[], T], **options: Unpack[BackgroundOptions]) -> T: ...
    def proxy(self, target: Any = MISSING, *, factory: Any = None, **options: Unpack[BackgroundOptions]) -> Any:
        """Make the calls of any object in the background: in order, on captured arguments, on one thread.

        ::

            writer = handler.proxy(SummaryWriter("runs"))
            writer.add_scalar("loss", loss, step)           # takes microseconds; the loss is captured now

        Args:
            target: an object, a module (``mlflow``), a function (``torch.save``), a ``logging.Handler``.
            factory: called on the lane's thread, at the first call, to make the object there (a ``sqlite3``
                connection, say).
            **options: as for :func:`background`, but ``every``, ``when``, ``select``. ``overflow="latest"`` keeps the
                newest call of each method and first argument.

        Returns:
            A stand-in, typed as its target, whose calls return a handle: ``handle.wait(timeout=None)`` gives what the
            call returned. Attributes that are plain values can be read; setting attributes and items and ``with``
            work; what would need the object's answer at once raises.

        Raises:
            ConfigurationError: an option that can't work; names it.
        """
        names = {*self._attached, *self._pool.lanes, *(one.name for one in self._proxied)}
        proxy, home = make_proxy(self, self._pool, names, target, factory, dict(options))
        if home.lane.placement == "process":
            self._home(home.lane).add(home)
        self._proxied.append(home)
        if home.lane.name not in self._pool.lanes:
            self._add_lane(home.lane)
        return proxy

    def fence(self) -> None:
        """Wait until nothing is copied from the weights any more; to be called before they change by other means than
        the step of a torch optimizer that the run was given. The training thread.

        Copies of big parameters and optimizer states go on while the loop does; each optimizer's step waits for them.
        Everything else is whole when ``call_event`` returns.
        """
        self._store.fence()

    def flush(self, timeout: float | None = None) -> Report:
        """Wait until everything that was emitted before is handled. Any thread, but not inside a background hook.

        Args:
            timeout: seconds; None: as long as the lanes move.

        Returns:
            The books; ``report.stalled`` names the lanes that had handled nothing for ``stall_timeout``.

        Raises:
            TimeoutError: names the lanes that are still at work.
            InsideHookError: called from within a background hook.
        """
        barrier = self._pool.barrier({}, {})
        stalled = self._pool.wait(lambda: barrier.pending, timeout, "flush()")
        return self._pool.report(stalled)

    def finish(self, timeout: float | None = None) -> Report:
        """The end of a run, for a handler that goes on: :meth:`flush`, then raise what :meth:`close` would.

        Raises:
            LaneError: a callback with ``on_error="raise_at_end"`` has failed; once. ``error.report`` is the Report.
            TimeoutError, InsideHookError: as for :meth:`flush`.
        """
        report = self.flush(timeout)
        if self._checkpoints is not None:
            self._checkpoints.settle(timeout)
        self._tell_of_unheard()
        self._raise_at_end(report)
        return report

    def drain(self, error: BaseException) -> None:
        """The end of a run that ``error`` has ended: wait at most ``shutdown_timeout``. What close() would raise is
        logged: it must not mask the error. What ends the process (Ctrl-C, SystemExit) is not waited for once more at
        its exit."""
        try:
            stalled = self._pool.drain(self._pool.shutdown_timeout, error)
            if stalled:
                logger.warning("lanes that have stalled are not waited for: %s", ", ".join(stalled))
        except TimeoutError as late:
            if isinstance(error, Exception):
                logger.warning("%s; they go on in the background", late)
            else:
                logger.warning("%s", late)
                exits.had_its_time(self._pool)
        if self._checkpoints is not None:
            self._checkpoints.settle(self._pool.shutdown_timeout)
        self._log_at_end()

    def _raise_at_end(self, report: Report) -> None:
        error = self._pool.failures.take_to_raise_at_end()
        if error is None and self._checkpoints is not None:
            error = self._checkpoints.take_failed()
        if error is not None:
            error.report = report
            raise error

    def _tell_of_unheard(self) -> None:
        if not self._told_of_unheard:
            self._told_of_unheard = True
            warn_of_unheard(self._attached.values(), self._routes)

    def _log_at_end(self) -> None:
        unraised = self._pool.failures.take_to_raise_at_end()
        if unraised is not None:  # it must not mask what ends the run
            logger.error("%s", unraised)

    def barrier(self) -> Barrier:
        """A cut through all lanes, here and now: each callback's state when exactly the events before it were handled.
        Never waits; ``barrier.wait()`` does. Inline callbacks' states are read at once, on this thread."""
        self._ensure_started()
        states: dict[str, Any] = {}
        for one in self._attached.values():
            if one.lane is None:
                states |= read_state(one)
        return self._pool.barrier(visits(self._attached.values()), states)

    def state_dict(self) -> dict[str, Any]:
        """``{callback name: its state_dict()}`` for all callbacks, behind a barrier. Waits for the lanes.

        Raises:
            Exception: what a callback's ``state_dict()`` raised.
        """
        barrier = self.barrier()
        states = barrier.wait()
        if barrier.late:
            logger.warning("state_dict: the states of stalled lanes are missing: %s", ", ".join(barrier.late))
        return states

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Hand each callback its state, where its hooks run, behind a barrier. Waits for the lanes.

        Raises:
            ConfigurationError: a state is for no callback of this handler; then nothing is loaded.
            Exception: what a callback's ``load_state_dict()`` raised.
        """
        self._ensure_started()
        check_states(self._attached.values(), state_dict)
        barrier = self._pool.barrier(visits(self._attached.values(), state_dict), {})
        for one in self._attached.values():
            if one.lane is None and one.name in state_dict:
                load_state(one, state_dict[one.name])
        barrier.wait()
        if barrier.late:
            raise TimeoutError(f"load_state_dict: lanes that have stalled have not loaded: {', '.join(barrier.late)}")

    def checkpoint(self, path: str | os.PathLike[str], /, **objects: Any) -> Checkpoint:
        """Write all that a run needs to go on from here: the states of ``objects``, of the random generators and of all
        callbacks, in one cut. Never waits: captured at once, written in the background, and there as a whole when all
        lanes have passed the cut. Inside an inline hook: captured after the event was pushed, so that the cut holds it.

        ::

            handler.checkpoint("runs/1/resume", model=model, optimizer=optimizer, scheduler=scheduler)

        Args:
            path: a folder; the two newest checkpoints are kept in it.
            **objects: what has ``state_dict`` and ``load_state_dict``, or dicts and lists of such; and plain values: a
                step, an epoch.

        Returns:
            A :class:`Checkpoint`: ``wait()`` for it, or look whether it is ``done``. While one is under way another is
            skipped, and counted: it is ``skipped``, and its ``wait()`` returns at once. Before the last one of a run,
            wait for the one before.

        Raises:
            ConfigurationError: an object has no state; or this is a forked child.
        """
        from async_trainer.resume import cut
        from async_trainer.resume.objects import check_objects

        self._refuse_in_fork("checkpoint")
        values = {name: value for name, value in objects.items() if value is None or type(value) in PLAIN_VALUES}
        stateful = {name: value for name, value in objects.items() if name not in values}
        check_objects(stateful)
        return cut.take(self, Path(path), lambda: (stateful, {"values": values}))

    def _settle_checkpoint(self, timeout: float | None) -> None:
        """Wait for the checkpoint that is under way, if one is."""
        if self._checkpoints is not None:
            self._checkpoints.settle(timeout)

    def _hold_in_children(self, descriptor: int | None) -> None:
        """Have the processes of lanes hold a descriptor open, until they end; None: those that start need not."""
        for lane in self._pool.lanes.values():
            if lane.remote is not None:
                lane.remote.let_go() if descriptor is None else lane.remote.hold(descriptor)

    def _take_wanted(self) -> None:
        wanted, self._wanted = self._wanted, []
        for take in wanted:
            take()

    def restore(self, path: str | os.PathLike[str], /, **objects: Any) -> dict[str, Any]:
        """Go on from the newest checkpoint in a folder: hand each object and each callback its state, and set the
        random generators. The training thread; waits for the lanes.

        Returns:
            The plain values that the checkpoint was given, by name.

        Raises:
            ConfigurationError: there is none that is whole; or an object is not in it, or of another kind; or this is a
                forked child. Nothing is changed where that can be known before.
        """
        from async_trainer.resume import cut

        self._refuse_in_fork("restore")
        values = cut.restore(self, Path(path), objects)
        self._restored = True
        return values

    def stats(self) -> Stats:
        """What happened to the events so far, and what that cost the loop: immutable; prints as a table. Any thread."""
        pool = self._pool
        heard: list[Route | Proxied] = [route for route in self._routes.values() if route is not None]
        heard += self._proxied
        return Stats(
            lanes=pool.lane_stats(),
            captures=sum(one.captures for one in heard),
            capture_seconds=max(0.0, sum(one.seconds for one in heard) - pool.waits.budget),  # it waits in between
            waits=pool.waits,
            snapshot_bytes=pool.snapshot_bytes,
            max_snapshot_bytes=self._settings["max_snapshot_bytes"],
            kept_bytes=pool.kept.nbytes,
            errors=pool.failures.kinds,
        )

    def publish(self, folder: str | os.PathLike[str], *, step: str = Event.BATCH_END) -> None:
        """Have the run tell in a folder, once a second, how it is doing: for ``async-trainer watch`` and ``report``. A
        Trainer does so by itself, in the split's folder. Any thread; a thread of its own writes.

        ::

            handler.publish("runs/1")

        Args:
            folder: gets ``status.json``, ``history.jsonl``, and with ``timeline=True`` ``timeline.json.gz``. What an
                earlier run has left of these is replaced.
            step: the event that ends a step of the loop.

        Raises:
            ConfigurationError: there is no such event; the handler is closed; or this is a forked child.
            OSError: the folder can't be written to.
        """
        self._refuse_in_fork("publish")
        if step not in self._events:
            raise ConfigurationError(f"publish: there is no event {step!r}{suggestion(step, self._events)}")
        if self.closed:
            raise ConfigurationError("publish: this handler is closed: there is nothing to tell any more")
        from async_trainer.watching.status import warn_of_another

        folder = Path(folder).absolute()
        warn_of_another(folder)
        self._publish(folder, step=step)

    def _publish(
        self,
        folder: Path,
        *,
        step: str = Event.BATCH_END,
        append: bool = False,
        progress: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Publisher:
        from async_trainer.watching.publisher import Publisher

        timeline = self._events if self._settings["timeline"] else None
        publisher = Publisher(self, folder, step=step, timeline=timeline, append=append, progress=progress)
        self._publishers = (*(one for one in self._publishers if not one.over), publisher)
        if publisher.recording is not None:
            self.listen(publisher.recording)
        self._note()
        publisher.start()
        return publisher

    def _unpublish(self, publisher: Publisher, how: str) -> None:
        """The run of ``publisher`` is over, and the handler goes on."""
        publisher.end(how)
        self._publishers = tuple(one for one in self._publishers if one is not publisher)
        self._pool.listeners = tuple(one for one in self._pool.listeners if one is not publisher.recording)
        self._note()

    def _note(self) -> None:
        """Have the publishers' tapes note what they want to know."""
        self._tapes = tuple(one.tape for one in self._publishers)
        self._pool.waited.notebooks = self._tapes
        self.add_callbacks([])  # routes anew

    def listen(self, listener: Listener) -> None:
        """Have ``listener.lane_event(event)`` called after each background hook, off the training thread. Any thread.

        ::

            handler.listen(LogHooks(slow=1.0))         # from async_trainer.listeners

        Args:
            listener: a :class:`~async_trainer.listeners.Listener`.

        Raises:
            ConfigurationError: it has no ``lane_event``.
        """
        if not callable(getattr(listener, "lane_event", None)):
            raise ConfigurationError(f"listen: {listener!r} has no method lane_event(event)")
        self._pool.listeners = (*self._pool.listeners, listener)

    def explain(self) -> Explanation:
        """Who gets what, captured how, and what that costs: prints as a table. Fuller once events have come."""
        routes = [route for route in self._routes.values() if route is not None]
        return explain(self._attached.values(), routes, self._proxied)

    def _repr_html_(self) -> str:
        return self.stats()._repr_html_()

    def close(self, timeout: float | None = None) -> Report:
        """Drain the lanes and end: idempotent. What comes after it is lost, and counted; inline hooks still run.

        Args:
            timeout: seconds; what is not handled by then is lost, and counted. None: until the lanes are empty or
                stalled.

        Returns:
            The books of the whole run.

        Raises:
            LaneError: once, after draining: a callback with ``on_error="raise_at_end"`` has failed, or one with
                ``"raise"`` after the last event. ``error.report`` is the Report.
            InsideHookError: called from within a background hook.
        """
        report = self._close(timeout)
        self._raise_at_end(report)
        return report

    def _close(self, timeout: float | None, cause: BaseException | None = None) -> Report:
        if self._report is None:
            pool = self._pool
            try:
                report = pool.close(timeout, cause)
                if self._checkpoints is not None:
                    self._checkpoints.settle(timeout)
                self._report = report
                if cause is None:
                    self._tell_of_unheard()
                for publisher in self._publishers:
                    publisher.end("finished" if cause is None else f"ended by {what_ended(cause)}")
            except (KeyboardInterrupt, SystemExit):  # Ctrl-C again, or a signal handler; close() may be called again
                logger.warning("closing was interrupted: %s", pool.describe(pool.report()))
                pool.told = True
                raise
            if (self._report.lost or self._report.stalled) and not pool.told:
                logger.warning("closed: %s", pool.describe(self._report))
                pool.told = True
        return self._report

    @property
    def attached(self) -> tuple[Attached, ...]:
        """The callbacks, in list order, with their names, hooks and options."""
        return tuple(self._attached.values())

    @property
    def closed(self) -> bool:
        """Whether it has ended: background callbacks get no more events."""
        return self._report is not None

    def __enter__(self) -> Self:
        if self._report is not None:
            raise ConfigurationError("this handler is closed; copy.copy(handler) is a new one with the same callbacks")
        self._ensure_started()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if isinstance(error, SystemExit):
            exits.remember_exit(error.code)
        self._close(0.0 if exits.interrupted_twice(error) else self._pool.shutdown_timeout, error)
        self._log_at_end()

    def _ensure_started(self) -> None:
        if not self._started:
            self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unstarted, ([one.record for one in self._attached.values()], self._settings)


def _unstarted(callbacks: list[Background | Inline], settings: dict[str, Any]) -> CallbacksHandler:
    return CallbacksHandler(callbacks, **settings)


class _Silence(dict[str, Route | None]):
    """The routes of a forked child: nobody hears anything."""

    def __missing__(self, event: str) -> None:
        return None


capture.register(CallbacksHandler)(lambda handler: tuple(handler._attached))
