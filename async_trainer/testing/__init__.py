"""For the tests of callbacks: fire the documented loop at one, compare all the ways to run it, stop its lane.

::

    from async_trainer.testing import check_callback, hold, play

    play(LossCurve(tmp_path / "curve.csv"))
    check_callback(lambda directory: LossCurve(directory / "curve.csv"))

With pytest there is the fixture ``callbacks_handler``, from ``async_trainer.pytest_plugin``.
"""

from __future__ import annotations

from async_trainer.testing.check import check_callback, read_files
from async_trainer.testing.hold import hold
from async_trainer.testing.play import Rehearsal, play

__all__ = ["Rehearsal", "check_callback", "hold", "play", "read_files"]
