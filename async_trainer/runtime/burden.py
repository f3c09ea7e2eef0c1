"""What a lane takes: the time of its hooks, and the CPU that they use; of a thread lane that is the interpreter's."""

from __future__ import annotations

SECONDS = 2.0
"""Of CPU, before anything is said: less is an import, a first figure."""

BUSY = 0.25
"""CPU over wall time in the hooks. Measured on two cores, beside a loop of 2 ms a step: a sleep 0.01, a log that fsyncs
0.2, ``torch.save`` with fsync 0.3; plain Python and matplotlib 0.5 (alone 0.97; where others want the cores, 0.3)."""

OF_RUN = 0.15
"""CPU over the time of the run; where hooks take less, the loop can't lose much by them. In the same measurement: a log
0.02, one that fsyncs 0.08, ``torch.save`` 0.06, plain Python and matplotlib 0.5."""


class Burden:
    """Adds up what the hooks of a lane take, and says once that it is much.

    CPU is no proof that the interpreter is held: native code that gives it up uses CPU, too. Nothing tells the two
    apart cheaply: a thread that holds the interpreter for 0.2 ms, and looks whether the other's CPU clock goes on, was
    tried; where the cores are wanted, one in native code stands as still then as one that waits.
    """

    __slots__ = ("_counted", "_since", "_told", "cpu", "wall")

    def __init__(self) -> None:
        self.wall = 0.0  # s in hooks
        self.cpu = 0.0  # s of that on a core
        self._counted = (0.0, 0.0)  # the same, while somebody's loop ran beside them
        self._since: float | None = None
        self._told = False

    def add(self, began: float, wall: float, cpu: float, *, beside_loop: bool) -> bool:
        """Hooks took ``wall`` seconds from ``began``, and ``cpu`` of the processor. The lane's thread.

        Args:
            began: s, of the same clock as in other calls.
            wall: s.
            cpu: s.
            beside_loop: whether a training loop may have run meanwhile.

        Returns:
            Whether it is much, now; True once at most.
        """
        self.wall += wall
        self.cpu += cpu
        if not beside_loop:
            return False
        if self._since is None:
            self._since = began
        counted_wall, counted_cpu = self._counted = (self._counted[0] + wall, self._counted[1] + cpu)
        much = (
            not self._told
            and counted_cpu >= SECONDS
            and counted_cpu >= BUSY * counted_wall
            and counted_cpu >= OF_RUN * (began + wall - self._since)
        )
        self._told = self._told or much
        return much

    def __str__(self) -> str:
        """``"11.8 s of CPU in 12.3 s (96 %)"``, as far as a loop ran beside it."""
        wall, cpu = self._counted
        return f"{cpu:.1f} s of CPU in {wall:.1f} s ({100 * cpu / wall:.0f} %)" if wall else "no CPU"
