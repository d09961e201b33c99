"""The samples that a run could not read: reported once, limited in number, and without weight in the loss."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch
from diffpipe.plural import plural
from diffpipe.train.distributed import Communicator


class BadSamplesError(UserError):
    """More samples could not be read than data.max_bad_samples allows."""


class BadSamples:
    """The error message of each bad sample of a run, and the largest number of them.

    A sample that returns in a later epoch has the same message and counts once: the limit is on the data set, however
    long the run. known: the messages that all ranks know, sorted; a checkpoint keeps them.
    """

    def __init__(self, limit: int, comm: Communicator):
        self.limit, self.comm = limit, comm
        self.known: list[str] = []
        self._local: list[str] = []

    def add(self, step: int, micro_batches: Sequence[Batch]) -> None:
        """Print the new ones among this rank's samples of a step."""
        for complaint in (complaint for batch in micro_batches for complaint in batch.errors):
            if complaint not in self.known and complaint not in self._local:
                self._local.append(complaint)
                warning = f"warning: step {step}, rank {self.comm.rank}: {complaint}; the sample is left out"
                tqdm.write(warning, file=sys.stderr)

    def agree(self) -> None:
        """Share the new ones with all ranks. Raises BadSamplesError, on all, above the limit. A collective."""
        if not self.limit:
            return
        new = {complaint for rank in self.comm.gather(self._local) for complaint in rank}
        self._local = []
        if not new:
            return
        self.known = sorted(new.union(self.known))
        if len(self.known) <= self.limit:
            return
        more = f"; {len(self.known) - 8} more" if len(self.known) > 8 else ""
        raise BadSamplesError(
            f"{plural(len(self.known), 'sample is', 'samples are')} bad and data.max_bad_samples is {self.limit}: "
            f"{'; '.join(self.known[:8])}{more}. Replace or remove them, or raise data.max_bad_samples; the same "
            f"command goes on from the last checkpoint"
        )


def sample_weight(micro_batches: Sequence[Batch], batch_size: int, comm: Communicator) -> float | Tensor:
    """The per-sample loss weight of a step: world size / valid samples in the global batch.

    DDP and FSDP average gradients over ranks. With this weight the average is the gradient of the mean loss over the
    global batch, however unevenly its samples fall on ranks and micro-batches. A collective where samples may be bad;
    it does not wait for the device.
    """
    valid = [batch.valid.sum() for batch in micro_batches if batch.valid is not None]
    if not valid:
        return comm.world / batch_size
    total = comm.sum(torch.stack(valid).sum()).clamp(min=1)
    # Where all are valid, this is the float32 that the quotient above is rounded to.
    return (comm.world / total.double()).float()
