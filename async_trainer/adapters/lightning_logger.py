"""A Lightning logger whose calls are made in the background."""

from __future__ import annotations

from typing import Any

from async_trainer.adapters.disguise import Disguise, end_run
from async_trainer.adapters.lightning_steering import REMEDY
from async_trainer.handler import CallbacksHandler


class BackgroundLogger(Disguise):
    """A logger whose calls are made in the background. Made with Lightning's ``Logger`` as its base."""

    _elsewhere = REMEDY

    def __init__(self, logger: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        self._live = logger
        self._made = not hasattr(type(logger), "experiment")
        self._calls = handler.proxy(logger, **options)
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_calls" not in vars(self):
            raise AttributeError(name)
        return getattr(self._calls, name)

    @property
    def experiment(self) -> Any:
        """The logger's own, its calls made in the background; made here, where it isn't yet."""
        live = self._at_rest()
        made = live.experiment
        self._made = True
        return made if made is None else self._calls.experiment

    def _at_rest(self) -> Any:
        """The logger; until its experiment is made, while no call is: each would make one."""
        if not self._made:
            self.handler.flush()
        return self._live

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """In the background."""
        self._refuse_fork()
        self._calls.log_metrics(*args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """In the background."""
        self._refuse_fork()
        self._calls.log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """In the background."""
        self._calls.save()

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """On the training thread, behind what was logged: it runs the live module, once."""
        self.handler.flush()
        self._live.log_graph(*args, **kwargs)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """On the training thread, behind what was logged: it reads files that Lightning may remove next."""
        self.handler.flush()
        self._live.after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        """In the background, and waited for: at the end of ``fit``, ``test``, ..., what was logged is there."""
        self._calls.finalize(status)
        end_run(self.handler)


def passed_on(base: Any) -> dict[str, Any]:
    """The properties of Lightning's ``Logger``, read from the logger itself."""

    def one(name: str) -> Any:
        return property(lambda self: getattr(self._at_rest(), name))

    names = [name for cls in base.__mro__ for name, value in vars(cls).items() if isinstance(value, property)]
    return {name: one(name) for name in names if name not in vars(BackgroundLogger) and not name.startswith("__")}
