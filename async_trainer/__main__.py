"""``python -m async_trainer``: as the command ``async-trainer``."""

from __future__ import annotations

import sys

from async_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
