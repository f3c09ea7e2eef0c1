"""EventLog: of callbacks that write TensorBoard's files: where they are, and how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from async_trainer.callback import Callback, label
from async_trainer.callbacks.ending import Ending
from async_trainer.callbacks.event_files import EventFiles, check_installed
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class EventLog(Callback):
    """Opens the files at a start, cuts them back at a resume, and closes them at the end. Any one thread."""

    place: ClassVar[str] = "tensorboard"
    """The default folder, in the logs of the split."""

    def __init__(self, folder: Any) -> None:
        check_installed(label(self))
        self.folder = given_folder(self, folder)
        self._ending = Ending()
        self._files: EventFiles | None = None
        self._state: Mapping[str, Any] | None = None  # while no file is open: of the last training, or as loaded

    def __repr__(self) -> str:
        return f"<{label(self)}: {self._files.folder if self._files else self.folder}>"

    def check_training(self, **arguments: Any) -> list[Path]:
        """Refuse a training without a place to write to."""
        return [self._find(arguments.get("maps"), arguments.get("state")) / "events.out.tfevents.*"]

    def on_train_start(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Replace the files."""
        folder = self._find(maps, state)
        self._close()
        self._state = {}  # where no file can be opened now, the next event tries again
        self._open(folder, self._state)

    def on_resume(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Go on with the files, from :meth:`load_state_dict`, before or after this."""
        self._open(self._find(maps, state), self._state if self._files is None else None)

    def _open(self, folder: Path, state: Mapping[str, Any] | None) -> EventFiles:
        self._close()
        self._files = EventFiles(folder, state)
        self._state = None
        return self._files

    def _find(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        logs: Path = split_folder(self, maps, state).logs
        return logs / self.place

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        """Be ready to write, as before ``event``."""
        files = self._files
        if files is None:
            if self._state is None:
                raise RuntimeError(
                    f"{label(self)}: no file is open: on_train_start or on_resume comes first, or has failed"
                )
            files = self._open(self._find(maps, state), self._state)
        if event is not None and event.attempt > 1:
            files.rewind()
        files.mark()

    def on_train_end(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Close the file, synced."""
        self._ending.check(event)
        with self._ending:
            self._close()

    def on_exception(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Close the file, synced."""
        self.on_train_end(event=event)

    def _close(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            self._state = files.counted()
            files.close()

    def state_dict(self) -> Mapping[str, Any]:
        """``records``: how many there are, all of them on disk; ``step``: the last one written."""
        if self._files is not None:
            return self._files.state()
        return self._state or {"records": 0, "step": -1}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the files back to the state: at once, or when :meth:`on_resume` opens them."""
        self._state = dict(state_dict)
        if self._files is not None:
            folder, files = self._files.folder, self._files
            self._files = None
            files.close()
            self._open(folder, self._state)
