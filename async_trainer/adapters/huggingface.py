"""Hugging Face transformers: callbacks that a ``Trainer`` has already, moved to the background."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any, Unpack

from async_trainer.adapters.adapted import adapt
from async_trainer.adapters.disguise import Disguise
from async_trainer.adapters.frozen import take_copy
from async_trainer.adapters.mlflow_runs import runs_of_this_thread
from async_trainer.adapters.reading import functions_of, steps, stores
from async_trainer.callback import BackgroundOptions, label
from async_trainer.callback import background as in_background
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.snapshot import Kind, Memo, capture
from async_trainer.suggest import suggestion

NAMES = ("args", "state", "control")
"""The positional arguments of each hook."""

OFFERED = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
"""What each hook may name besides."""

FREE = ("logs", "metrics")
EVENTS = {"on_train_begin": "on_train_start"}
"""The hooks whose events are not called like them: such that are never dropped."""

GRADIENTS = ("on_pre_optimizer_step", "on_optimizer_step")
"""The events at which there are gradients: the model comes with them."""


def make_handler(**settings: Any) -> CallbacksHandler:
    """A :class:`CallbacksHandler` that knows the events of transformers, for ``offload(..., handler=)``.

    Args:
        **settings: as for :class:`CallbacksHandler`: ``max_snapshot_bytes``, ``stall_timeout``, ...
    """
    import transformers

    events = [EVENTS.get(hook, hook) for hook in _hooks_of(transformers.TrainerCallback)]
    return CallbacksHandler(events=[*events, *settings.pop("events", ())], **settings)


def offload(
    trainer: Any, *callbacks: Any, handler: CallbacksHandler | None = None, **options: Unpack[BackgroundOptions]
) -> CallbacksHandler:
    """Move callbacks of a transformers ``Trainer`` to the background, where they are handled in order, on snapshots.

    ::

        trainer = Trainer(model, args, ...)  # report_to has added a WandbCallback
        huggingface.offload(trainer, WandbCallback, MyPlots, select={"model": None})

    They stay in the trainer's list, under their own types. Before each checkpoint, and at the end of ``train``,
    ``evaluate`` and ``predict``, what was emitted is handled: no checkpoint is removed while an upload reads it.

    Args:
        trainer: its callbacks are replaced in place.
        *callbacks: which: their classes, the names of these, or themselves.
        handler: of :func:`make_handler`, or what an earlier call returned. Default: one of their own.
        **options: as for :func:`async_trainer.background`.

    Returns:
        The handler. ``with`` it, a training that fails ends within ``shutdown_timeout``.

    Raises:
        ConfigurationError: there is no such callback, or it steers the training; then none is moved.
    """
    listed = trainer.callback_handler.callbacks
    chosen = _choose(listed, callbacks)
    for one in chosen:
        _refuse(one, trainer.args)
    handler = handler or make_handler()
    base = _base(chosen[0])
    adapted = [_adapted(one, base) for one in chosen]
    if options.get("placement") != "process":
        for one in adapted:
            if hasattr(one.callback, "_ml_flow"):  # MLflowCallback goes on with a run that is open
                one.prepare = runs_of_this_thread()
    handler.add_callbacks([in_background(one, **options) for one in adapted])
    for attached, one in zip(handler.attached[-len(chosen) :], chosen, strict=True):
        listed[listed.index(one)] = _class_for(Moved, base)(one, attached.callback, handler, trainer)
    listed[:] = [one for one in listed if not (issubclass(type(one), Waits) and one.handler is handler)]
    listed.append(_class_for(Waits, base)(handler, trainer))
    return handler


class Moved(Disguise):
    """A callback in the trainer's list, whose hooks run in the background. Made with transformers'
    ``TrainerCallback`` as its base."""

    def __init__(self, callback: Any, adapted: Any, handler: CallbacksHandler, trainer: Any) -> None:
        self._live = callback
        self._adapted = adapted
        self._trainer = weakref.ref(trainer)
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_adapted" not in vars(self):
            raise AttributeError(name)
        return getattr(self._adapted.callback, name)

    def state(self) -> Any:
        """Of an ``ExportableState``, its state when exactly the events so far were handled. Waits for the lanes."""
        self.handler.flush()
        return self._adapted.callback.state()

    def fire(self, hook: str, args: Any, state: Any, control: Any, live: dict[str, Any]) -> None:
        """One event for all callbacks of the handler, when the last of them is called. The training thread."""
        if not self._is_last():
            return
        if hook in GRADIENTS:
            from async_trainer.snapshot.gradients import with_gradients

            live["model"] = with_gradients(live["model"])
        live["optimizer"] = getattr(live.get("optimizer"), "optimizer", live.get("optimizer"))  # Accelerate wraps them
        live["lr_scheduler"] = getattr(live.get("lr_scheduler"), "scheduler", live.get("lr_scheduler"))
        live["processing_class"] = ByReference(live.get("processing_class"))
        arguments = {"args": Arguments(args), "state": State(state), "control": Control(control), **live}
        self.handler.call_event(EVENTS.get(hook, hook), **arguments)

    def _is_last(self) -> bool:
        trainer = self._trainer()
        for one in reversed(trainer.callback_handler.callbacks if trainer is not None else ()):
            if issubclass(type(one), Moved) and one.handler is self.handler:
                return one is self
        return False


class Waits:
    """The last in the trainer's list, when inline callbacks have said what is to be saved: waits for the lanes. Made
    with transformers' ``TrainerCallback`` as its base.

    Attributes:
        handler: the handler.
    """

    def __init__(self, handler: CallbacksHandler, trainer: Any) -> None:
        self.handler = handler
        self._trainer = weakref.ref(trainer)

    def fire(self, hook: str, args: Any, state: Any, control: Any, live: dict[str, Any]) -> None:
        """After each event. The training thread."""
        trainer = self._trainer()
        alone = trainer is not None and not trainer.is_in_train
        if hook == "on_train_end" or (hook in ("on_evaluate", "on_predict") and alone):
            self.handler.finish()
        elif _files_change_next(hook, args, control):
            self.handler.flush()


def _files_change_next(hook: str, args: Any, control: Any) -> bool:
    """Whether the trainer may write or remove checkpoints before it fires another event."""
    if hook in ("on_step_end", "on_epoch_end", "on_log", "on_evaluate") and control.should_save:
        return True
    if hook == "on_evaluate" and args.save_strategy == "best":  # it makes up its mind after this event
        return True
    return bool(control.should_training_stop) and hook in ("on_log", "on_save")  # at the end all but the best may go


# -------------------------------------------------------------------------------------------------- what hooks receive


class Live:
    """A live object that is to be captured in a way of its own."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class ByReference(Live):
    """As it is: a tokenizer."""

    __slots__ = ()


class Arguments(Live):
    """``TrainingArguments``: a copy; some callbacks set something in theirs."""

    __slots__ = ()


class State(Live):
    """``TrainerState``: a frozen copy; what was logged is never changed, only more."""

    __slots__ = ()


class Control(Live):
    """``TrainerControl``: a frozen copy."""

    __slots__ = ()


def _take_state(live: State, memo: Memo) -> Any:
    return take_copy(live.value, memo, shallow=("log_history",))


capture.knows(ByReference, Kind("by reference", lambda live, memo: live.value))
capture.knows(Arguments, Kind("copied", lambda live, memo: take_copy(live.value, memo, frozen=False)))
capture.knows(State, Kind("copied, frozen", _take_state))
capture.knows(Control, Kind("copied, frozen", lambda live, memo: take_copy(live.value, memo)))


# ------------------------------------------------------------------------------------------- choosing and refusing


def _choose(listed: list[Any], wanted: tuple[Any, ...]) -> list[Any]:
    there = [label(one) for one in listed if not issubclass(type(one), (Moved, Waits))]
    if not wanted:
        raise ConfigurationError(f"offload() moves the callbacks that you name; the trainer has {', '.join(there)}")
    chosen: list[Any] = []
    for one in wanted:
        if isinstance(one, str):
            name, found = one, [cb for cb in listed if cb.__class__.__name__ == one]
        elif inspect.isclass(one):
            name, found = one.__name__, [cb for cb in listed if isinstance(cb, one)]
        else:
            name, found = label(one), [cb for cb in listed if cb is one]
        if not found:
            raise ConfigurationError(
                f"offload(): the trainer has no {name}{suggestion(name, there)}; it has {', '.join(there)}"
            )
        chosen += [cb for cb in found if not any(cb is other for other in chosen)]
    for one in chosen:
        if issubclass(type(one), (Moved, Waits)):
            raise ConfigurationError(f"offload(): {one!r} already")
    return chosen


def _refuse(callback: Any, args: Any) -> None:
    """Refuse a callback that changes the training, as far as its code tells."""
    name = label(callback)
    for hook in _hooks_of(_base(callback)):
        method = getattr(callback, hook)
        names = list(inspect.signature(method).parameters)[1:3]
        for use in stores(method):
            if use.variable in names:
                raise _steers(name, f"sets {use.variable}.{use.attribute} in {hook}")
    for function in functions_of(type(callback), ""):
        for use in stores(function):
            if use.attribute.startswith("should_") and use.variable != "self":
                raise _steers(name, f"sets {use.variable}.{use.attribute}")
        for use in steps(function):
            raise _steers(name, f"calls {use.attribute}() of {use.variable}")
    if getattr(args, "restore_callback_states_from_checkpoint", False) and hasattr(callback, "from_state"):
        raise ConfigurationError(
            f"{name} has a state, and args.restore_callback_states_from_checkpoint asks for another one to be made of "
            "it at a resume, which would run inline: leave it inline, or switch that off"
        )


def refuse_control(where: str, result: Any) -> None:
    """A hook may return the control that it was given, and nothing else."""
    if type(result).__name__ != "TrainerControl" or "__setattr__" not in vars(type(result)):
        raise ConfigurationError(
            f"{where} returned {type(result).__name__}, to change the training: a background hook can't. Leave it "
            "inline"
        )


def _steers(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {what}: it steers the training, and can't do that in the background. Leave it inline: don't offload it"
    )


# -------------------------------------------------------------------------------------------------------- their classes


def _base(callback: Any) -> Any:
    for base in type(callback).__mro__:
        if base.__name__ == "TrainerCallback" and base.__module__.startswith("transformers."):
            return base
    raise ConfigurationError(f"offload(): {label(callback)} is no TrainerCallback")


@functools.cache
def _hooks_of(base: Any) -> tuple[str, ...]:
    return tuple(name for name in vars(base) if name.startswith("on_"))


def _adapted(callback: Any, base: Any) -> Any:
    hooks = {
        EVENTS.get(hook, hook): (hook, NAMES)
        for hook in _hooks_of(base)
        if getattr(getattr(callback, hook), "__func__", None) is not vars(base)[hook]
    }
    return adapt(callback, hooks, free=FREE, offered=OFFERED, check=refuse_control)


@functools.cache
def _class_for(mixin: type, base: Any) -> Any:
    namespace = {"__module__": __name__} | {hook: _firing(hook) for hook in _hooks_of(base)}
    return type(mixin.__name__, (mixin, base), namespace)


def _firing(hook: str) -> Any:
    def fire(self: Any, args: Any, state: Any, control: Any, **live: Any) -> None:
        self.fire(hook, args, state, control, live)

    return fire
