"""The samples that a run could not have: said once, agreed on by all ranks, and how many it may do without."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch
from diffpipe.train.distributed import Communicator


class BadSamplesError(UserError):
    """More samples could not be had than a run may do without."""


class BadSamples:
    """What is wrong with each bad sample of a run, and at most `limit` of them.

    A sample that comes round again is the same one, so that the limit is one on the data, however long a run.
    known: what all ranks know, sorted; a checkpoint keeps it.
    """

    def __init__(self, limit: int, comm: Communicator):
        self.limit, self.comm = limit, comm
        self.known: list[str] = []
        self._met: list[str] = []

    def meet(self, step: int, micro: Sequence[Batch]) -> None:
        """Say what is new among this rank's samples of a step."""
        for complaint in (complaint for batch in micro for complaint in batch.complaints):
            if complaint not in self.known and complaint not in self._met:
                self._met.append(complaint)
                what = f"warning: step {step}, rank {self.comm.rank}: {complaint}; it counts nowhere"
                tqdm.write(what, file=sys.stderr)

    def agree(self) -> None:
        """Tell the other ranks. Raises BadSamplesError, on all, where there are too many. A collective."""
        if not self.limit:
            return
        met = {complaint for part in self.comm.gather(self._met) for complaint in part}
        self._met = []
        if not met:
            return
        self.known = sorted(met.union(self.known))
        if len(self.known) <= self.limit:
            return
        more = f"; {len(self.known) - 8} more" if len(self.known) > 8 else ""
        raise BadSamplesError(
            f"{len(self.known)} samples are bad and data.max_bad_samples is {self.limit}: "
            f"{'; '.join(self.known[:8])}{more}. Replace or remove them, or raise data.max_bad_samples; the same "
            f"command goes on from the last checkpoint"
        )
