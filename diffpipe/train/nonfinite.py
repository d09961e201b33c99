"""Updates whose loss or gradient was NaN or infinite: they change no weight, and the run stops or goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.train.config import TrainConfig
from diffpipe.train.distributed import Communicator


class NonFiniteUpdate(NamedTuple):
    """One update that was left out.

    phase: empty in a stage with one phase. quantity: "loss" or "gradient". keys: this rank's samples with a non-finite
    loss; for a gradient, which is a sum over samples, all of this rank's.
    """

    step: int
    phase: str
    quantity: str
    rank: int
    keys: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.keys) - 8} more" if len(self.keys) > 8 else ""
        where = f"step {self.step}, rank {self.rank}: " + (f"{self.phase.strip('/')}: " if self.phase else "")
        return f"{where}the {self.quantity} of {', '.join(self.keys[:8])}{more} is not finite"


class NonFiniteError(UserError):
    """A loss or a gradient was NaN or infinite, and the run may not skip the update. It has changed no weight."""


def handle_nonfinite(updates: Sequence[NonFiniteUpdate], skipped: int, config: TrainConfig, comm: Communicator) -> int:
    """The number of updates that the run has skipped, these and the `skipped` before them.

    updates: the same on all ranks. Raises NonFiniteError where the run may not skip them.
    """
    if not updates:
        return skipped
    skipped += len({(update.step, update.phase) for update in updates})
    what = "; ".join(map(str, updates[:4])) + (f"; {len(updates) - 4} more" if len(updates) > 4 else "")
    if config.non_finite == "skip" and skipped <= config.max_skips:
        if comm.main:
            tqdm.write(f"warning: {what}; skipped, {skipped} of {config.max_skips}", file=sys.stderr)
        return skipped
    advice = "or set train.non_finite=skip"
    if config.non_finite == "skip":
        advice = f"{plural(skipped, 'update was', 'updates were')} skipped and train.max_skips is {config.max_skips}"
    raise NonFiniteError(
        f"{what}. No weight was changed by it. Lower optimizer.lr or look at these samples, {advice}; the same "
        f"command goes on from the last checkpoint"
    )
