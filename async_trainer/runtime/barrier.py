"""A cut through all lanes: what each callback's state was when exactly the events before it were handled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class Barrier:
    """A mark in every lane. Made by ``CallbacksHandler.barrier()``, which never waits.

    Attributes:
        late: the names of the lanes that had stalled when :meth:`wait` returned; their states are missing.
    """

    def __init__(self, pool: Pool, lanes: Iterable[Lane], states: dict[str, Any]) -> None:
        self._pool = pool
        self._pending = {lane.name: lane for lane in lanes}
        self._states = states
        self._errors: list[BaseException] = []
        self.late: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Barrier {'done' if self.done else 'waits for ' + ', '.join(self._pending)}>"

    @property
    def done(self) -> bool:
        """Whether every lane has passed."""
        return not self._pending

    @property
    def pending(self) -> list[Lane]:
        """The lanes that have not passed yet."""
        return list(self._pending.values())

    def passing(self, lane: Lane) -> Callable[[Any, BaseException | None], None]:
        """What the worker of ``lane`` calls when it passes, with the states of its callbacks or an error."""

        def passed(states: Any, error: BaseException | None) -> None:
            if error is not None:
                self._errors.append(error)
            self._states.update(states or {})
            self._pending.pop(lane.name, None)

        return passed

    def taken(self) -> dict[str, Any]:
        """The states so far. Any thread; never waits.

        Raises:
            Exception: what a callback's ``state_dict()`` raised.
        """
        if self._errors:
            raise self._errors[0]
        return dict(self._states)

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until all lanes have passed, or only stalled ones have not. Any thread, but not inside a hook.

        Args:
            timeout: seconds; None: as long as the lanes move.

        Returns:
            ``{callback name: state_dict()}`` at the cut, without the callbacks of stalled lanes (see ``late``).

        Raises:
            TimeoutError: names the lanes that have not passed.
            InsideHookError: called from within a background hook.
            Exception: what a callback's ``state_dict()`` raised.
        """
        self.late = self._pool.wait(lambda: self.pending, timeout, "barrier.wait()")
        return self.taken()
