"""A training that uploads, and may kill itself: ``python -m tests.callbacks.upload_child MAPS ENDPOINT KILL_AT``."""

from __future__ import annotations

import sys
from pathlib import Path

from async_trainer.callbacks import Upload
from async_trainer.callbacks.object_store import ObjectStore
from async_trainer.resume.bundles import Bundles
from tests.resume.child import Steps
from tests.resume.kit import computational, split, trainer


def main(maps: Path, endpoint: str, kill_at: int) -> None:
    """Train, or resume where there is something to; stop at the ``kill_at``-th start or end of an upload."""
    steps = Steps(kill_at)
    ObjectStore.put = steps.counted(ObjectStore.put)  # type: ignore[method-assign]
    upload = Upload("s3://killed/run", files=["checkpoints/*", "logs/*"], options={"endpoint_url": endpoint})
    resumes = bool(Bundles(maps / "split-0" / "resume").paths)
    made = trainer(maps, upload, resume=resumes, steps=None, wait=True)
    if resumes:
        made.resume(0, split())
    else:
        made.train(split(), computational())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
