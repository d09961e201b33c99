"""`python -m tests.faults.full_from_step …`: `python -m diffpipe …` whose disk is full from the second step on.

FILL in the environment names the file that rank 0 fills it with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from diffpipe.__main__ import main
from diffpipe.train.loop import Trainer


def fill(path: Path) -> None:
    disk = os.statvfs(path.parent)
    path.write_bytes(b"\0" * (disk.f_bavail * disk.f_frsize))


if __name__ == "__main__":
    train_step = Trainer.train_step

    def full_after(trainer: Trainer, *args: Any) -> None:
        train_step(trainer, *args)
        if trainer.step == 2 and trainer.runtime.main:
            fill(Path(os.environ["FILL"]))

    setattr(Trainer, "train_step", full_after)  # noqa: B010 (another signature)
    sys.exit(main())
