"""The stage's own losses on held-out images.

The images are the first n positions of a stream of data.test, with the noise, timesteps and dropped labels of those
positions. The stream has a seed of its own and is the same in every run, on any number of processes. So a difference
between two steps, or between two runs of a stage, comes from the weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffpipe.data.decode.latents import are_latents
from diffpipe.data.index import shard_set
from diffpipe.data.loader.dataset import Dataset, check
from diffpipe.errors import UserError, all_of
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.preflight import require_codec_of_latents
from diffpipe.interfaces import Batch, Phase, Stage
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG, fold_in
from diffpipe.train.checkpoint.state import ValidationSet
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

SEED = fold_in("validation")

Sums = dict[str, tuple[float, int]]
"""By name: the sum over samples, and the number of samples."""


class Validation(NamedTuple):
    """The losses of averaged networks on held-out images.

    Adversarial stages are validated by their losses, too, gradient penalties included. These do not measure the quality
    of images, but a discriminator whose held-out loss drifts from its training loss overfits.
    """

    stage: Stage
    dataset: Dataset
    n: int

    @classmethod
    def of(cls, experiment: Experiment, stage: Stage) -> Validation | None:
        """None where validate.every is 0. Raises UserError where data.test is missing or does not fit the run."""
        dataset = held_out_dataset(experiment)
        return None if dataset is None else cls(stage, dataset, experiment.validation.n)

    def about(self) -> ValidationSet:
        """The held-out samples. Losses can be compared where these are equal."""
        return ValidationSet(fingerprint=self.dataset.reader.shard_set.fingerprint, n=self.n)

    def is_on(self, validation_set: ValidationSet) -> bool:
        """Whether these are the held-out samples, by a fingerprint of this version or of an earlier one."""
        shards = self.dataset.reader.shard_set
        return validation_set.n == self.n and shards.has_fingerprint(validation_set.fingerprint)

    def measure(self, nets: Mapping[str, nn.Module], step: int, runtime: Runtime) -> dict[str, float]:
        """`validation_loss` and each metric; with several phases, under the phase's name. A collective.

        step: the last trained step. Samples that cannot be read are skipped with a warning where data.max_bad_samples
        allows some. Raises UserError on all ranks.
        """
        phases = [p for p in self.stage.phases() if p.start <= step and (p.until is None or step < p.until)]
        parts = map_over_ranks(self.n, lambda chunk: self._sums(nets, phases, chunk, runtime), runtime)
        partial_sums = [sums for sums, _ in parts]
        complaints = [complaint for _, those in parts for complaint in those]
        if complaints:
            print_on_rank_zero(
                runtime, f"warning: {len(complaints)} of {self.n} held-out samples are skipped: {complaints[0]}"
            )
        values = {}
        for name in dict.fromkeys(name for sums in partial_sums for name in sums):
            sums, counts = zip(*(part[name] for part in partial_sums), strict=True)
            values[name] = sum(sums) / sum(counts) if sum(counts) else math.nan
        if "validation_loss" not in values:  # several phases: their sum, as in training
            values["validation_loss"] = sum(v for name, v in values.items() if name.endswith("/validation_loss"))
        return values

    def _sums(
        self, nets: Mapping[str, nn.Module], phases: list[Phase], chunk: range, runtime: Runtime
    ) -> tuple[Sums, list[str]]:
        batch = _on_device(self.dataset.batch(np.arange(chunk.start, chunk.stop)), runtime)
        several = len(self.stage.phases()) > 1
        sums: Sums = {}
        for phase in phases:
            with torch.set_grad_enabled(phase.penalizes):  # a penalty needs gradients with respect to the images
                loss = self.stage.loss(phase, nets, batch, KeyedRNG(SEED, batch.positions))
            prefix = f"{phase.name}/" if several else ""
            valid = torch.ones_like(loss.per_sample, dtype=torch.bool) if batch.valid is None else batch.valid
            sums[f"{prefix}validation_loss"] = _sum(loss.per_sample.detach(), valid)
            for name, value in loss.metrics.items():  # as in training, a metric is nan for samples that it is not about
                sums[f"{prefix}validation_{name}"] = _sum(value.detach(), valid & torch.isfinite(value))
        return sums, [*batch.errors]


def held_out_dataset(experiment: Experiment) -> Dataset | None:
    """The images to validate on; None where validate.every is 0. Raises UserError: see `Validation.of`."""
    if not experiment.validation.every:
        return None
    if experiment.data.test is None:
        raise UserError("validate.every needs images that are not trained on; set data.test to held-out shards")
    data = experiment.data.model_copy(update={"flip": False, "crop": "center"})
    shards, n = shard_set.load(experiment.data.test, cache=data.shard_cache), experiment.validation.n

    def require_enough() -> None:
        if n > shards.total:
            raise UserError(
                f"validate.n is {n}, and data.test ({shards.paths[0]} and its set) holds "
                f"{plural(shards.total, 'sample')}; give that many or fewer"
            )

    all_of(
        lambda: check(data, shards),
        lambda: require_codec_of_latents(experiment, shards) if are_latents(shards) else None,
        require_enough,
    )
    return Dataset(data, shards, SEED)


def _sum(value: Tensor, counts: Tensor) -> tuple[float, int]:
    chosen = value[counts].double()
    return chosen.sum().item(), len(chosen)


def _on_device(batch: Batch, runtime: Runtime) -> Batch:
    images = batch.images.to(runtime.device, memory_format=runtime.memory_format)
    labels, valid = (None if t is None else t.to(runtime.device) for t in (batch.labels, batch.valid))
    return batch._replace(images=images, labels=labels, valid=valid, positions=batch.positions.to(runtime.device))
