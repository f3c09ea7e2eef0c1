"""Many kills in little time: ``python -m tests.resume.forks MODE FOLDER COUNT`` imports torch once, and forks for each.

It starts no thread itself, and computes nothing, so that it may fork. ``steps``: a training is killed at the first of
the things that it does to the disk, resumed and killed at the second, and so on. ``moments``: at random moments.
``commits``: a bundle is committed, alone, and killed at each of them, and with each of its files torn.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from async_trainer import background
from async_trainer.callbacks import MetricsLog
from async_trainer.resume.bundles import Bundles
from tests.resume.child import Steps, has_ended
from tests.resume.kit import computational, difference, outcome, split, trainer

DISK = ("fsync", "rename", "replace", "write", "ftruncate", "unlink", "mkdir", "rmdir", "link")
KILLED, TORN = -signal.SIGKILL, -signal.SIGXFSZ


def forked(work: Callable[[], None], patience: float | None = None) -> int:
    """Do ``work`` in a child: its exit status; it is killed after ``patience`` seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)  # nothing is waited for: it is the moment of the kill
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED, TORN), status
    return status


def count_all(steps: Steps) -> None:
    """Have ``steps`` count whatever is done to the disk, before it is done: after it is before the next."""

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.step()
            return function(*args, **kwargs)

        return call

    for name in DISK:
        setattr(os, name, counted(getattr(os, name)))
    torch.save = counted(torch.save)  # type: ignore[assignment]


def train(folder: Path, kill_at: int = 0) -> None:
    """Train, or resume where there is something to go on from; the outcome goes to ``<folder>/outcome``."""
    steps = Steps(kill_at)
    maps, second = folder / "maps", folder / "second.csv"
    resumes = bool(Bundles(maps / "split-0" / "resume").paths)
    if not resumes:
        shutil.rmtree(maps, ignore_errors=True)
    made = trainer(maps, background(MetricsLog(second)), resume=resumes, steps=2)
    count_all(steps)
    frame = made.resume(0, split()) if resumes else made.train(split(), computational())
    content = pickle.dumps((outcome(made, frame), second.read_bytes(), steps.count))
    with io.FileIO(folder / "outcome", "wb") as file:
        file.write(content)


class Chain:
    """A training that is killed and resumed, over and over, until its end; then another. All end as ``whole`` did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = self.ended = 0
        self.current = self.make()
        began = time.monotonic()
        assert forked(lambda: train(self.current)) == 0
        self.seconds = time.monotonic() - began
        self.whole = pickle.loads((self.current / "outcome").read_bytes())
        self.current = self.make()

    def make(self) -> Path:
        self.number += 1
        (made := self.folder / str(self.number)).mkdir()
        return made

    def go_on(self, kill_at: int = 0, patience: float | None = None) -> int:
        """Until its end, or its kill."""
        status = forked(lambda: train(self.current, kill_at), patience)
        if has_ended(self.current):  # it may have been killed after that
            if status == 0:
                self.check()
            shutil.rmtree(self.current)
            self.current = self.make()
            self.ended += 1
        return status

    def check(self) -> None:
        found = pickle.loads((self.current / "outcome").read_bytes())
        assert difference(self.whole[0], found[0]) == []
        assert found[1] == self.whole[1]

    def end(self) -> None:
        """To the end, and compare."""
        while self.go_on() != 0:
            pass


def steps(folder: Path, count: int) -> None:
    """Kill at each step, the ``count``-th at most."""
    chain = Chain(folder)
    for step in range(1, min(count, chain.whole[2]) + 1):
        chain.go_on(kill_at=step)
    chain.end()
    assert chain.ended


def moments(folder: Path, count: int) -> None:
    """Kill at ``count`` random moments."""
    chain, draw = Chain(folder), random.Random()
    for _ in range(count):
        chain.go_on(patience=draw.uniform(0, chain.seconds))
    chain.end()
    assert chain.ended


def bundle(folder: Path, number: int, kill_at: int = 0, torn: str = "", size: int = 0) -> None:
    """Commit one, and add a state that came late; ``number`` is in all of it. At ``size`` bytes of the file
    ``torn`` the process ends."""
    steps = Steps(kill_at)
    count_all(steps)

    def reach(file: str) -> None:
        if file == torn:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # python ignores it
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    bundles = Bundles(folder)
    reach("objects")
    draft = bundles.draft()
    draft.write("objects", {"objects": {}, "extra": {"number": torch.full((50,), number)}})
    reach("callbacks")
    draft.write("callbacks", {"one": {"number": number}, "many": list(range(200))})
    reach("manifest")
    path = draft.commit({"number": number})
    reach("latest")
    bundles.publish(path, keep=1)
    reach("late")
    bundles.amend(path, {"late": {"number": number}}, {"late": []})


def numbers(folder: Path) -> tuple[int, bool]:
    """Which bundle is read, as a whole; and whether it has the late state."""
    found = Bundles(folder).read()
    number: int = found.callbacks["one"]["number"]
    assert (found.objects["extra"]["number"] == number).all()
    assert found.manifest["number"] == number
    assert found.callbacks.get("late", {"number": number}) == {"number": number}
    return number, "late" in found.callbacks


def commits(folder: Path, count: int) -> None:
    """Kill at each step, and tear each file at each ``count``-th byte."""
    base = folder / "base"
    assert forked(lambda: bundle(base, 1)) == 0

    def kill(**how: Any) -> tuple[int, int, bool]:
        shutil.rmtree(there := folder / "there", ignore_errors=True)
        shutil.copytree(base, there)
        status = forked(lambda: bundle(there, 2, **how))
        found = numbers(there)
        named = (there / "latest").read_text()
        assert named in ("bundle-000001\n", "bundle-000002\n")
        assert found[0] == 2 or named == "bundle-000001\n"  # what it names is there
        assert forked(lambda: bundle(there, 3)) == 0
        assert numbers(there) == (3, True)
        assert len([path for path in there.iterdir() if path.name != "latest"]) == 1  # and nothing is left
        return status, *found

    seen, step = [], 0
    while not seen or seen[-1][0]:
        step += 1
        seen.append(kill(kill_at=step))
    assert seen[0][1:] == (1, True)
    assert seen[-1] == (0, 2, True)
    assert [one[1] for one in seen] == sorted(one[1] for one in seen)  # never back to the one before
    assert step > 20
    for torn, expected in (("objects", 1), ("callbacks", 1), ("manifest", 1), ("latest", 2), ("late", 2)):
        size, found = 0, kill(torn=torn, size=0)
        while found[0]:
            assert found == (TORN, expected, expected == 1), (torn, size)
            size += count
            found = kill(torn=torn, size=size)
            if found[1] != expected:  # the file is smaller, and the next one torn
                break
        assert size


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]).step()  # imports torch's compiler: two seconds, once
    began = time.monotonic()
    {"steps": steps, "moments": moments, "commits": commits}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(f"{time.monotonic() - began:.1f} s")
