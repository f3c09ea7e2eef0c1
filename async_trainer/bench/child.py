"""One scenario in a process of its own: ``python -m async_trainer.bench.child NAME SHARE``. Prints its rows as JSON."""

from __future__ import annotations

import json
import os
import sys

from async_trainer.bench.scenarios import measure
from async_trainer.bench.timing import Effort


def main() -> None:
    """Run the scenario that the arguments name."""
    name, share = sys.argv[1:]
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # whatever a library prints is no part of the answer
        rows = measure(name, Effort(float(share)))
        json.dump([row.to_json() for row in rows], answer)


if __name__ == "__main__":
    main()
