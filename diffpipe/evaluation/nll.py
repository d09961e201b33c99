"""The negative log-likelihood of images under a run, as a score file and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from diffpipe.diffusion.ode_likelihood import ODESettings
from diffpipe.errors import UserError
from diffpipe.evaluation.counts import note_count
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.likelihood import (
    Likelihoods,
    labelled_images,
    ode_stage,
    require_likelihood,
    score_images,
    scoring_stage,
)
from diffpipe.experiment.run import Run
from diffpipe.metrics.protocol import Result, provenance
from diffpipe.train.runtime import Runtime


class NLL(NamedTuple):
    """The likelihoods of the images, and their mean with its protocol.

    name: the score's name, `nll`, or `nll_ode` by the probability flow.
    """

    likelihoods: Likelihoods
    result: Result
    name: str = "nll"

    def text(self, name: str) -> str:
        """The mean of a term and its standard error, such as `3.142 ± 0.010 bits/dim`. The nll is the term `score`."""
        mean, error = self.likelihoods.mean(name), self.likelihoods.standard_error(name)
        return f"{mean:.3f} ± {error:.3f} {self.likelihoods.unit}"

    def table(self) -> str:
        """One line for the nll, then one for each of its terms."""
        titles = {name: self.name if name == "score" else name for name in self.likelihoods.values}
        width = max(map(len, titles.values()))
        first, *terms = [f"{title:>{width}}  {self.text(name)}" for name, title in titles.items()]
        error = self.likelihoods.probe_error
        probes = "" if error is None else f"; ± {error:.4f} due to the probes"
        return "\n".join([f"{first} ({self.likelihoods.kind}; {self.likelihoods.n} images{probes})", *terms])


def measure_nll(
    run: Run, source: str | TensorImages, runtime: Runtime, *, n: int | None, seed: int, ode: ODESettings | None = None
) -> NLL:
    """The likelihood of n images of shards, or of the images in memory. A collective.

    n: None for 1000, or all where they are fewer. ode: by the probability flow, with these settings. Raises UserError
    where the run has no such likelihood, and for fewer than 2 images.
    """
    scoring_stage(run, likelihood=True) if ode is None else ode_stage(run)
    images = source
    if isinstance(images, str):
        shards = images
        images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(shards, run, n))
        note_count(n, images.n, shards, runtime)
    if images.n < 2:
        raise UserError(f"n is {images.n}; a standard error needs at least 2 images")
    likelihoods = score_images(run, images, seed, runtime, ode=ode)
    require_likelihood(likelihoods, run)
    name = "nll" if ode is None else "nll_ode"
    pixels = {"levels": 256, "resolution": run.shape.resolution.plain(), "channels": run.shape.channels}
    precision = str(runtime.dtype).removeprefix("torch.")
    model = {"stage": run.experiment.stage.kind, "kind": likelihoods.kind, "seed": seed, "precision": precision}
    protocol = {
        "metrics": {name: {"unit": likelihoods.unit, **pixels, **_about(ode)}},
        "model": {**model, **run.describe()},
        "reference": {"n": likelihoods.n, **images.describe()},
        **provenance(),
    }
    return NLL(likelihoods, Result(_scores(name, likelihoods), {}, protocol), name)


def _scores(name: str, likelihoods: Likelihoods) -> dict[str, float]:
    """The mean, its errors and its terms. All names differ between a bound and a flow: they are not to be compared."""
    terms = {term: likelihoods.mean(term) for term in likelihoods.values if term != "score"}
    scores = {name: likelihoods.mean("score"), f"{name}_standard_error": likelihoods.standard_error("score")}
    if likelihoods.probe_error is None:
        return scores | terms
    scores[f"{name}_probe_error"] = likelihoods.probe_error
    return scores | {f"{name}_{term}": value for term, value in terms.items()}


def _about(ode: ODESettings | None) -> dict[str, Any]:
    """The part of the protocol about the probability flow."""
    if ode is None:
        return {}
    return {
        **asdict(ode),
        "trace": "Hutchinson, random signs at each evaluation",
        "dequantization": "q(x_1 | x_0) at the least noise level, and the bound's L_0",
        "guidance": None,
    }
