"""A Lightning callback whose hooks run in the background."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from async_trainer.adapters.adapted import adapt
from async_trainer.adapters.disguise import Disguise
from async_trainer.adapters.lightning_steering import REMEDY, refuse_log, refuse_steering
from async_trainer.adapters.lightning_trainer import show_trainer
from async_trainer.callback import background as in_background
from async_trainer.callback import label
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.states import visits

EVENTS = {"setup": "on_setup", "teardown": "on_teardown"}
"""The hooks whose events are not called like them."""

NOT_EVENTS = ("on_save_checkpoint", "on_load_checkpoint")
GRADIENTS = ("on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
"""The events at which there are gradients: the module comes with them."""


class BackgroundCallback(Disguise):
    """A callback whose hooks run in the background. Made with Lightning's ``Callback`` as its base."""

    _elsewhere = REMEDY

    def __init__(self, callback: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        if issubclass(type(callback), BackgroundCallback):
            raise ConfigurationError(f"{label(callback)} is in the background already")
        base: Any = type(self).__mro__[3]
        hooks = {
            EVENTS.get(hook, hook): (hook, names)
            for hook, names in hooks_of(base).items()
            if getattr(getattr(callback, hook), "__func__", None) is not vars(base)[hook]
        }
        refuse_steering(callback, [method for method, _ in hooks.values()])
        self._saves = [hook for hook in NOT_EVENTS if _overrides(callback, hook, base)]
        if self._saves and options.get("placement") == "process":
            raise ConfigurationError(
                f"{label(callback)}.{self._saves[0]} needs the live trainer, and can't run in a process: use "
                "placement='thread', or state_dict() and load_state_dict()"
            )
        callback.log = callback.log_dict = refuse_log
        self._adapted = adapt(callback, hooks)
        self._live = callback
        handler.add_callbacks([in_background(self._adapted, **options)])
        self._one = handler.attached[-1]
        self.handler = handler
        # As Lightning asks, by the function, whether a callback has a state.
        self.state_dict = functools.wraps(callback.state_dict)(functools.partial(self._state_dict))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_adapted" not in vars(self):
            raise AttributeError(name)
        return getattr(self._adapted.callback, name)

    @property
    def state_key(self) -> str:
        """The callback's own: a checkpoint doesn't tell where it ran."""
        return str(self._live.state_key)

    @property
    def _legacy_state_key(self) -> Any:
        return self._live._legacy_state_key

    def _state_dict(self) -> dict[str, Any]:
        """The callback's state when exactly the events so far were handled: Lightning saves. Waits for the lanes."""
        return cast(dict[str, Any], self.handler.state_dict().get(self._one.name, {}))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Handed to the callback, where its hooks run. Waits for the lanes."""
        self.handler._ensure_started()
        self.handler._pool.barrier(visits([self._one], {self._one.name: state_dict}), {}).wait()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What the callback adds to a checkpoint, on the training thread: its lane is idle then."""
        self._at_rest("on_save_checkpoint", trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """As for saving."""
        self._at_rest("on_load_checkpoint", trainer, pl_module, checkpoint)

    def _at_rest(self, hook: str, *live: Any) -> None:
        if hook in self._saves:
            self.handler.flush()
            getattr(self._live, hook)(*live)

    def _fire(self, hook: str, names: tuple[str, ...], live: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """One event for all callbacks of the handler, when the last of them is called: inline ones come first."""
        self._refuse_fork()
        trainer = live[0]
        if _last(trainer, self.handler) is not self:
            return
        show_trainer(type(trainer))
        arguments = dict(zip(names, live, strict=False)) | keywords
        if hook in GRADIENTS:
            from async_trainer.snapshot.gradients import with_gradients

            arguments["pl_module"] = with_gradients(arguments["pl_module"])
        self.handler.call_event(EVENTS.get(hook, hook), **arguments)
        if hook == "on_exception":
            self.handler.drain(arguments["exception"])
        elif hook == "teardown":
            self.handler.finish()
        self._bring_back()

    def _bring_back(self) -> None:
        """Of a callback in a process, its attributes as they are there."""
        if self._adapted.callback is not self._live:
            vars(self._live).update(vars(self._adapted.callback))


def _last(trainer: Any, handler: CallbacksHandler) -> Any:
    for one in reversed(trainer.callbacks):
        if issubclass(type(one), BackgroundCallback) and one.handler is handler:
            return one
    return None


@functools.cache
def hooks_of(base: Any) -> dict[str, tuple[str, ...]]:
    """Lightning's hooks, and the names of their arguments."""
    names = [name for name in vars(base) if name.startswith("on_") or name in EVENTS]
    return {name: tuple(inspect.signature(vars(base)[name]).parameters)[1:] for name in names if name not in NOT_EVENTS}


def firing(hook: str, names: tuple[str, ...]) -> Callable[..., None]:
    def fire(self: Any, *live: Any, **keywords: Any) -> None:
        self._fire(hook, names, live, keywords)

    return fire


def _overrides(callback: Any, hook: str, base: Any) -> bool:
    return getattr(getattr(callback, hook), "__func__", None) is not vars(base)[hook]
