"""The negative log-likelihood of images under a run, as a score file and as text."""

from __future__ import annotations

from typing import NamedTuple

from diffpipe.errors import UserError
from diffpipe.evaluation.counts import note_count
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.likelihood import (
    Likelihoods,
    labelled_images,
    require_likelihood,
    score_images,
    scoring_stage,
)
from diffpipe.experiment.run import Run
from diffpipe.metrics.protocol import Result, provenance
from diffpipe.train.runtime import Runtime


class NLL(NamedTuple):
    """The likelihoods of the images, and their mean with its protocol."""

    likelihoods: Likelihoods
    result: Result

    def text(self, name: str) -> str:
        """The mean of a term and its standard error, such as `3.142 ± 0.010 bits/dim`. The nll is the term `score`."""
        mean, error = self.likelihoods.mean(name), self.likelihoods.standard_error(name)
        return f"{mean:.3f} ± {error:.3f} {self.likelihoods.unit}"

    def table(self) -> str:
        """One line for the nll, then one for each of its terms."""
        titles = {name: "nll" if name == "score" else name for name in self.likelihoods.values}
        width = max(map(len, titles.values()))
        first, *terms = [f"{title:>{width}}  {self.text(name)}" for name, title in titles.items()]
        return "\n".join([f"{first} ({self.likelihoods.kind}; {self.likelihoods.n} images)", *terms])


def measure_nll(run: Run, source: str | TensorImages, runtime: Runtime, *, n: int | None, seed: int) -> NLL:
    """The likelihood of n images of shards, or of the images in memory. A collective.

    n: None for 1000, or all where they are fewer. Raises UserError where the run has no likelihood, and for fewer than
    2 images.
    """
    scoring_stage(run, likelihood=True)
    images = source
    if isinstance(images, str):
        shards = images
        images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(shards, run, n))
        note_count(n, images.n, shards, runtime)
    if images.n < 2:
        raise UserError(f"n is {images.n}; a standard error needs at least 2 images")
    likelihoods = score_images(run, images, seed, runtime)
    require_likelihood(likelihoods, run)
    scores = {"nll": likelihoods.mean("score"), "nll_standard_error": likelihoods.standard_error("score")}
    terms = {name: likelihoods.mean(name) for name in likelihoods.values if name != "score"}
    pixels = {"levels": 256, "resolution": run.shape.resolution, "channels": run.shape.channels}
    precision = str(runtime.dtype).removeprefix("torch.")
    model = {"stage": run.experiment.stage.kind, "kind": likelihoods.kind, "seed": seed, "precision": precision}
    protocol = {
        "metrics": {"nll": {"unit": likelihoods.unit, **pixels}},
        "model": {**model, **run.describe()},
        "reference": {"n": likelihoods.n, **images.describe()},
        **provenance(),
    }
    return NLL(likelihoods, Result(scores | terms, {}, protocol))
