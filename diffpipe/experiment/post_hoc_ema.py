"""Averages of any length after training, from the snapshots of power-function averages (Karras et al. 2024, sec. 3.2).

A length that the run keeps is read from the checkpoint. Another one is the sum of the stored averages, those of the
snapshots up to the checkpoint and its own, whose profile is nearest to the wanted one.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.experiment.stored_config import stored_config
from diffpipe.plural import plural
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train import power_profile
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.verify import read_patiently
from diffpipe.train.distributed import Communicator
from diffpipe.train.ema import PowerEMAConfig, prefix
from diffpipe.train.power_profile import MAX_SIGMA_REL, Profile
from diffpipe.train.runtime import Runtime

MAX_MISFIT = 0.05
"""The largest part of the wanted profile that the stored ones may leave out, by its norm."""


class Term(NamedTuple):
    """A stored average, and its factor in the sum. index: its place among the lengths that the run keeps."""

    stored: Checkpoint
    index: int
    factor: float


class Average(NamedTuple):
    """The average that a run's weights are, as a sum of stored ones.

    name: `ema`, or `ema 0.1` with its length. misfit: the norm of the difference between its profile and the wanted
    one, relative to that of the wanted one.
    """

    name: str
    checkpoint: Checkpoint
    terms: list[Term]
    misfit: float = 0.0

    def describe(self) -> dict[str, Any]:
        """The part of a score's protocol about the sum: empty for an average that the checkpoint holds."""
        snapshots = {term.stored.step: term.stored for term in self.terms if term.stored is not self.checkpoint}
        if not snapshots:
            return {}
        digest = hashlib.sha256("".join(snapshots[step].manifest_sha256 for step in sorted(snapshots)).encode())
        return {"ema": {"snapshots": len(snapshots), "sha256": digest.hexdigest(), "misfit": round(self.misfit, 6)}}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the networks' tensors, `network.parameter`. Sums are float64. Raises UserError."""
        if len(self.terms) == 1:
            (term,) = self.terms
            names = {f"{prefix(term.index)}.{name}": tensor for name, tensor in tensors.items()}
            checkpoints.load(term.stored, names, Communicator())
            return
        whole = {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()}
        checkpoints.load(self.checkpoint, {f"{prefix(0)}.{name}": t for name, t in whole.items()}, Communicator())
        sums = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in tensors.items() if name not in whole}
        for stored, terms in itertools.groupby(self.terms, key=lambda term: term.stored):
            factors = {prefix(term.index): term.factor for term in terms}
            values = {
                (first, name): torch.empty_like(tensors[name], device="cpu") for first in factors for name in sums
            }
            checkpoints.load(stored, {".".join(key): value for key, value in values.items()}, Communicator())
            for (first, name), value in values.items():
                sums[name] += factors[first] * value.double()
        for name, value in sums.items():
            tensors[name].copy_(value)


def average(found: Checkpoint, sigma_rel: float | None, runtime: Runtime) -> Average:
    """The average of this length at the checkpoint; None: the one that the run samples and scores with. A collective.

    Raises UserError where the run keeps no power-function averages, for a length out of range, and where the snapshots
    are too few for it or damaged.
    """
    config = stored_config(found).ema
    if sigma_rel is None:
        return Average(config.weights, found, [Term(found, 0, 1.0)])
    home = found.path.parents[1]
    if not isinstance(config, PowerEMAConfig):
        raise UserError(
            f"--ema {sigma_rel:g}: {home} has one average of a fixed length (ema.kind={config.kind}); leave --ema out, "
            f"or train with ema.kind=power"
        )
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise UserError(f"--ema {sigma_rel:g}: lengths are above 0 and below {MAX_SIGMA_REL}; give one such as 0.1")
    name = f"ema {sigma_rel:g}"
    for i, kept in enumerate(config.sigma_rel):
        if math.isclose(kept, sigma_rel):
            return Average(name, found, [Term(found, i, 1.0)])
    stored = [*_snapshots(home / "ema", found, runtime), found]
    terms = [(checkpoint, i) for checkpoint in stored for i in range(len(config.gammas))]
    profiles = [Profile(checkpoint.step, config.gammas[i]) for checkpoint, i in terms]
    wanted = Profile(found.step, power_profile.sigma_rel_to_gamma(sigma_rel))
    factors, misfit = power_profile.fit(profiles, wanted)
    if misfit > MAX_MISFIT:
        raise UserError(
            f"--ema {sigma_rel:g}: the averages of the checkpoint and of {plural(len(stored) - 1, 'snapshot')} in "
            f"{home / 'ema'} miss {misfit:.0%} of this length's profile, and {MAX_MISFIT:.0%} may be missed; give a "
            f"length nearer to "
            f"{' or '.join(f'{kept:g}' for kept in config.sigma_rel)}, or train with a smaller ema.snapshot_every"
        )
    return Average(name, found, [Term(*term, factor) for term, factor in zip(terms, factors, strict=True)], misfit)


def _snapshots(directory: Path, found: Checkpoint, runtime: Runtime) -> list[Checkpoint]:
    """The run's snapshots before the checkpoint, oldest first, verified. A collective. Raises UserError."""
    paths = runtime.comm.on_rank_zero(lambda: read_patiently(directory, lambda: checkpoints.committed(directory)))
    snapshots = []
    for path in reversed(paths):
        if checkpoints.step_of(path) >= found.step:
            continue
        complaint = checkpoints.damage(path, runtime.comm)
        if complaint is not None:
            raise UserError(f"{path}: not a whole snapshot: {complaint}; move it away to do without it")
        snapshots.append(checkpoints.open_checkpoint(path, runtime.comm))
    return snapshots
