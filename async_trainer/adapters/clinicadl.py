"""ClinicaDL 2.0: its callbacks in the background, in a ``CallbacksHandler`` that its ``Trainer`` takes for its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clinicadl import callbacks as theirs
from clinicadl.callbacks import implemented
from clinicadl.callbacks.base import Callback
from clinicadl.callbacks.base import Event as TheirEvent
from clinicadl.io.maps import Maps
from clinicadl.metrics.handler import MetricsHandler
from clinicadl.split import Split
from clinicadl.train import TrainerState

from async_trainer.adapters.reading import functions_of, steps, stores
from async_trainer.callback import Background, Inline, Options, as_record, label
from async_trainer.errors import ConfigurationError, StandInError
from async_trainer.handler import CallbacksHandler as Lanes
from async_trainer.hooks import ALL_EVENTS
from async_trainer.snapshot import capture

BEHIND = (
    implemented.ModelCheckpointCallback, implemented.TrainingLossCallback, implemented.MetricsSaverCallback,
)  # fmt: skip
"""ClinicaDL's own that run in the background unless they are wrapped in ``inline(...)``."""

INLINE = (
    implemented.EarlyStoppingCallback, implemented.LRSchedulerCallback, implemented.ChecksCallback,
    implemented.ConfigSaverCallback, implemented.MonitorCallback, implemented.LoggerCallback,
    implemented.TrainingCheckpointCallback,
)  # fmt: skip
"""Those that steer, check or measure the training where it runs, or read all callbacks' states."""

FILES = Options(on_error="raise_at_end", lane="clinicadl")
EVENTS = tuple(event.value for event in TheirEvent)
ENDS = frozenset({TheirEvent.TRAIN_END, TheirEvent.VALIDATE_END, TheirEvent.TEST_END, TheirEvent.PREDICT_END})


class CallbacksHandler(theirs.CallbacksHandler):  # type: ignore[misc]  # ClinicaDL has no types to be checked
    """ClinicaDL's ``CallbacksHandler``; what is in the background runs on lanes of its own, on snapshots.

    ::

        callbacks = clinicadl.CallbacksHandler([EarlyStoppingCallback("loss"), background(MyPlots())])
        trainer = Trainer("maps", model, callbacks=callbacks)

    Ranks, default callbacks, JSON files and names of checkpoints are those of ClinicaDL: it sees the callbacks
    themselves. An event's inline callbacks come first, then it is captured and pushed; ``TrainingCheckpointCallback``
    comes after that, and finds each callback's state with the event in it.

    Args:
        callbacks: as for ClinicaDL's; those wrapped in ``background(...)``, those whose class asks for it, and
            ClinicaDL's ``ModelCheckpointCallback``, ``TrainingLossCallback`` and ``MetricsSaverCallback`` run in the
            background; ``inline(...)`` keeps one where it was.
        **settings: as for :class:`async_trainer.CallbacksHandler`: ``stall_timeout``, ``synchronous``, ...

    Attributes:
        lanes: the :class:`async_trainer.CallbacksHandler`: ``callbacks.lanes.stats()``.

    Raises:
        ConfigurationError: a callback that steers is in ``background(...)``; or an option that can't work.
    """

    lanes: Lanes

    def __init__(self, callbacks: Sequence[Any] = (), **settings: Any) -> None:
        self._settings = settings
        self._records: dict[int, Background | Inline] = {}
        super().__init__(callbacks=self._unwrapped(callbacks))

    def add_callbacks(self, callbacks: Sequence[Any]) -> None:
        """As ClinicaDL's own; wrapped ones too. The training thread."""
        super().add_callbacks(self._unwrapped(callbacks))

    def call_event(self, event: str | TheirEvent, **kwargs: Any) -> None:
        """Fire ``event``: inline callbacks, in ClinicaDL's order, then the lanes, then the training checkpoint.

        Raises:
            LaneError: at the end of a run: a background callback with ``on_error="raise_at_end"`` has failed.
            Exception: what an inline callback raised.
        """
        event = TheirEvent(event)
        ends = event.value.endswith("end") or event == TheirEvent.EXCEPTION
        if not ends:
            _call(self._first_and_last, event, kwargs)
        _call(self._inline, event, kwargs)
        self.lanes.call_event(event.value, **kwargs)
        if event in ENDS:
            self.lanes.finish()  # before the files to resume from are deleted
        elif event == TheirEvent.EXCEPTION:
            self.lanes.drain(kwargs["exception"])
        elif any(_reads_states(one, event, kwargs) for one in self._last):
            self.lanes.flush()
        _call(self._last, event, kwargs)
        if ends:
            _call(self._first_and_last[::-1], event, kwargs)

    def _unwrapped(self, callbacks: Sequence[Any]) -> list[Any]:
        plain = []
        for one in callbacks:
            if isinstance(one, (Background, Inline)):
                self._records[id(one.callback)] = one
                one = one.callback
            plain.append(one)
        return plain

    def _complete_callbacks(self) -> None:
        super()._complete_callbacks()
        if "lanes" in vars(self):
            self.lanes.close()
        records = {id(one): self._record(one) for one in self.all_callbacks}
        behind = [one for one in self._ordered if isinstance(records[id(one)], Background)]
        self._last = [one for one in self._ordered if type(one) is implemented.TrainingCheckpointCallback]
        self._inline = [one for one in self._ordered if one not in behind and one not in self._last]
        adapted = [_adapt(one, records[id(one)]) for one in behind]
        self.lanes = Lanes(adapted, events=[name for name in EVENTS if name not in ALL_EVENTS], **self._settings)

    def _record(self, callback: Any) -> Background | Inline:
        record = self._records.get(id(callback))
        if record is None:
            record = Background(callback, FILES) if type(callback) in BEHIND else as_record(callback)
        if isinstance(record, Background):
            _refuse_steering(callback)
        if isinstance(record, Background) and record.options.placement == "process":
            raise ConfigurationError(
                f"{label(callback)}: ClinicaDL reads its state from the object itself, which "
                "placement='process' has in another process: leave it out; the hook runs on a thread"
            )
        return record


def _refuse_steering(callback: Any) -> None:
    """Refuse a callback that steers, by its class or as far as its code tells.

    Raises:
        ConfigurationError: names what it does.
    """
    what = "" if not isinstance(callback, INLINE) else "steers the training, or looks at it where it runs"
    for function in functions_of(type(callback), "clinicadl"):
        for use in stores(function):
            if use.variable == "state":
                what = f"steers the training (it sets state.{use.attribute})"
        for use in steps(function):
            what = f"steers the training (it calls {use.attribute}() of {use.variable})"
    if what:
        raise ConfigurationError(f"{label(callback)} {what}, and can't do that in the background: pass it as it is")


def _call(callbacks: Sequence[Any], event: TheirEvent, kwargs: dict[str, Any]) -> None:
    for callback in callbacks:
        getattr(callback, event.value)(**kwargs)


def _reads_states(callback: Any, event: TheirEvent, kwargs: dict[str, Any]) -> bool:
    """Whether the training checkpoint reads or sets the states of all callbacks at this event."""
    if event == TheirEvent.RESUME:
        return True
    due = event == TheirEvent.EPOCH_END and callback.config.enabled
    return bool(due and kwargs["state"].current_epoch % callback.config.every_n_epochs == 0)


class Adapted:
    """One of their callbacks, with those of its hooks that do something."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback

    def state_dict(self) -> Any:
        """The callback's own."""
        return self.callback.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """The callback's own."""
        self.callback.load_state_dict(state_dict)


def _adapt(callback: Any, record: Any) -> Background:
    made = type(label(callback), (Adapted,), {})(callback)  # the lane is named by its class
    for name in EVENTS:
        hook = getattr(callback, name)
        if getattr(hook, "__func__", hook) is not getattr(Callback, name):
            setattr(made, name, hook)
    options: Options = record.options
    if type(callback) is implemented.ModelCheckpointCallback and options.when is None:
        config = callback.config  # epochs at whose end nothing is to be saved cost no copy of the model
        wanted: dict[str, Callable[..., bool]] = {
            "on_epoch_end": lambda state, **_: state.current_epoch in config.epochs,
            "on_train_end": lambda **_: config.save_last,
        }
        options = replace(options, when=wanted)
    return Background(made, options)


class SeenState(TrainerState):  # type: ignore[misc]
    """The state of the trainer, as of the event."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise StandInError(
            f"state.{name} can't be set in the background: it is a copy. Callbacks that steer the training run inline"
        )


@capture.freezes(TrainerState)
def _freeze(live: Any) -> Any:
    seen = SeenState.model_construct()
    vars(seen).update(vars(live))
    return seen


@capture.register(MetricsHandler)
def _show(live: Any) -> Any:
    """Its frames are replaced by new ones, and never written to, while a training goes on."""
    seen = copy.copy(live)
    seen._metrics = None if live._metrics is None else dict(live._metrics)
    seen._model = None  # the live one, for metrics that are yet to be made
    return seen


capture.register(Maps)(lambda maps: maps)
capture.register(Split)(lambda split: split)
capture.register(theirs.CallbacksHandler)(lambda handler: tuple(label(one) for one in handler.all_callbacks))
