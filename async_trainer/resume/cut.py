"""A handler's part of resume state: a cut through it, a checkpoint taken there, and going on from one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.errors import ConfigurationError
from async_trainer.resume.bundles import Bundle, Bundles
from async_trainer.resume.checkpoint import Checkpoint, Checkpoints
from async_trainer.resume.objects import check_objects, check_optimizers, load
from async_trainer.resume.rng import put_rng, take_rng

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler
    from async_trainer.runtime.barrier import Barrier

logger = logging.getLogger("async_trainer")

Content = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A place in a run that a checkpoint can be taken of, there or later.

    Attributes:
        barrier: gives the callbacks' states.
        lanes: of the background callbacks, by their names.
        handler: how far the handler had counted.
        rng: the random generators.
    """

    barrier: Barrier
    lanes: Mapping[str, str]
    handler: Mapping[str, Any]
    rng: dict[str, Any]


def mark(handler: CallbacksHandler, loaders: Iterable[Any] = ()) -> Cut:
    """The cut here and now. Never waits. The training thread, not inside a hook.

    Args:
        handler: whose callbacks' states are part of it.
        loaders: data loaders whose generators are part of it.
    """
    lanes = {one.name: one.lane.name for one in handler.attached if one.lane is not None}
    ours = {"seq": handler._pool.seq, "counts": {name: _counts(handler, name) for name in lanes}}
    return Cut(handler.barrier(), lanes, ours, take_rng(loaders))


def take(
    handler: CallbacksHandler,
    folder: Path,
    content: Content,
    *,
    keep: int = 2,
    deadline: float = 60.0,
    wait: bool = False,
    loaders: Iterable[Any] = (),
    at: Cut | None = None,
) -> Checkpoint:
    """Take a checkpoint: now, or, inside an inline hook, after its event was pushed. The training thread.

    Args:
        handler: whose callbacks' states are part of it.
        folder: gets the bundle.
        content: called when it is taken: objects with states, and plain values, each by name.
        keep: how many bundles are kept.
        deadline: seconds for the lanes to pass the cut; those that have not are taken as they were last known.
        wait: wait until it is on disk, or has failed.
        loaders: data loaders whose generators are part of it.
        at: an earlier cut, since which the objects' states have not changed; None: here and now.
    """
    handler._ensure_started()
    checkpoint = Checkpoint()
    checkpoints = handler._checkpoints = handler._checkpoints or Checkpoints(handler._pool)

    def capture() -> None:
        if checkpoints.busy:
            checkpoints.skipped += 1
            logger.info("a checkpoint is skipped: the one before is still under way")
            checkpoint.skip()
            return
        try:
            objects, extra = content()
            handler._store.watch(objects.values())
            place = mark(handler, loaders) if at is None else at
            checkpoints.capture(
                checkpoint, folder, objects, {**extra, "handler": place.handler}, place.rng, place.barrier, place.lanes,
                keep=keep, deadline=deadline,
            )  # fmt: skip
        except Exception as error:  # of a state_dict(): it costs the checkpoint, not the training
            checkpoints.fail(checkpoint, error)
        if wait:
            checkpoints.settle(None)

    if handler._inside:
        handler._wanted.append(capture)
    else:
        capture()
    return checkpoint


def _counts(handler: CallbacksHandler, name: str) -> dict[str, dict[str, int]]:
    """How many events ``every`` has counted for a callback, by event and stage."""
    tasks = [task for route in handler._routes.values() if route is not None for task in route.tasks]
    return {task.name: dict(task.counts) for task in tasks if task.owner.name == name and task.counts}


def restore(handler: CallbacksHandler, folder: Path, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Go on from the newest bundle in ``folder``. The training thread.

    Returns:
        The plain values in it.

    Raises:
        ConfigurationError: there is none that is whole; or an object is not in it, or of another kind.
    """
    check_objects(objects)
    bundle = Bundles(folder).read()
    kept = bundle.objects["objects"]
    missing = [name for name in objects if name not in kept]
    if missing:
        raise ConfigurationError(
            f"restore: {', '.join(missing)}: not in {bundle.path}; there are: {', '.join(kept) or 'none'}"
        )
    left = [name for name in kept if name not in objects]
    if left:
        logger.warning("restore: %s has states that nothing was given for: %s", bundle.path, ", ".join(left))
    for name, value in objects.items():
        check_optimizers(value, kept[name], name)
    handler.fence()
    for name, value in objects.items():
        load(value, kept[name], name)
    restore_callbacks(handler, bundle)
    logger.info("restored from %s", bundle.path)
    values: dict[str, Any] = bundle.objects["extra"].get("values", {})
    return values


def restore_callbacks(handler: CallbacksHandler, bundle: Bundle, loaders: Iterable[Any] = ()) -> None:
    """Hand the callbacks their states, then set the generators, those of ``loaders`` too. The training thread."""
    known = {one.name for one in handler.attached}
    gone = sorted(name for name, state in bundle.callbacks.items() if state and name not in known)
    if gone:
        logger.warning("restore: there are states of callbacks that aren't there any more: %s", ", ".join(gone))
    handler.load_state_dict({name: state for name, state in bundle.callbacks.items() if name in known})
    ours = bundle.objects["extra"]["handler"]
    handler._pool.seq = ours["seq"]
    for route in handler._routes.values():
        for task in route.tasks if route is not None else ():
            task.counts.update(ours["counts"].get(task.owner.name, {}).get(task.name, {}))
    put_rng(bundle.objects["rng"], loaders)
