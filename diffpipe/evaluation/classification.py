"""The classes of images by the likelihoods of a class-conditional run, and how far to trust them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from diffpipe.data import own_places
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.counts import note_count
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import (
    is_conditional,
    labelled_images,
    require_likelihood,
    score_images,
    scoring_stage,
)
from diffpipe.experiment.run import Run
from diffpipe.metrics import calibration
from diffpipe.metrics.calibration import Reliability
from diffpipe.metrics.protocol import provenance
from diffpipe.plural import plural
from diffpipe.rng import permutation
from diffpipe.train.runtime import Runtime


class Calibration(NamedTuple):
    """How good the probabilities are on one half of the images. log_loss: -log p(y|x) of the true label, in nats."""

    log_loss: float
    reliability: Reliability


class Classification(NamedTuple):
    """The classes predicted by the likelihoods, held against the true ones.

    confusion: images by true class (row) and predicted class (column). raw, tempered: before and after dividing the
    logits by the temperature, on the half of the images that it was not fitted on.
    """

    confusion: Int[Tensor, "k k"]
    temperature: float
    raw: Calibration
    tempered: Calibration

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        return int(self.confusion.diagonal().sum())

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95% interval."""
        return calibration.wilson(self.right, self.n)

    def table(self) -> str:
        """The accuracy with its interval, and the quality of the posterior, raw and after the temperature."""
        low, high = self.interval
        accuracy = f"{self.right / self.n:.4f} ({low:.4f} to {high:.4f}; {self.n} images)"
        raw, tempered = self.raw, self.tempered
        titles = {"accuracy": accuracy, "p(y|x)": f"{'raw':>10}{'tempered':>12}"}
        titles["-log p(y|x)"] = f"{raw.log_loss:10.4f}{tempered.log_loss:12.4f}  nats"
        titles["ECE"] = f"{raw.reliability.error:10.4f}{tempered.reliability.error:12.4f}  expected calibration error"
        lines = [f"{title:>12}  {value}" for title, value in titles.items()]
        if self.temperature > 2:
            lines.append(
                f"raw probabilities are far too sure, because the errors of all pixels add up; divide the logits by "
                f"the temperature, {self.temperature:.4g}, fitted on the other half of the images"
            )
        return "\n".join(lines)


def log_likelihoods(run: Run, images: ShardImages, seed: int, runtime: Runtime) -> Float64[Tensor, "n k"]:
    """log p(x|y) in nats, or the bound on it, of every image under every label. A collective.

    An image has the same noise under every label, so the noise cancels when labels are compared (Li et al. 2023,
    section 3.3). Raises UserError where the stage has no likelihood.
    """
    classes, dims = run.shape.classes, run.shape.channels * run.shape.resolution.pixels
    columns = []
    for label in range(classes):
        likelihoods = score_images(run, images, seed, runtime, label, f"score as class {label + 1}/{classes}")
        require_likelihood(likelihoods, run)
        assert likelihoods.unit.startswith("bits/dim"), "likelihoods are in bits/dim"
        columns.append(-dims * math.log(2) * likelihoods.values["score"])
    return torch.stack(columns, dim=1)


def log_prior(run: Run, prior: str) -> Float64[Tensor, " k"]:
    """log p(y): `uniform`, by the run's `data`, which must be local, or by the labels of other shards.

    One image of each class is added to the data's counts (Laplace), so that no class is impossible.
    """
    classes = run.shape.classes
    counts = torch.zeros(classes, dtype=torch.int64)
    if prior != "uniform":
        place = run.experiment.data.trained_on if prior == "data" else prior
        try:
            if prior == "data" and not own_places.are_local(place):
                raise UserError("it is remote, and a run alone sends no request")
            shards = shard_set.load(place)
            counts = torch.bincount(sequential_reader.labels(shards, range(shards.total)), minlength=classes)
        except UserError as error:
            needed = "the run's data.train" if prior == "data" else "these shards"
            raise UserError(
                f"prior {prior} needs the labels of {needed}: {error}; give another prior: SHARDS or uniform"
            ) from error
        if len(counts) > classes:
            raise UserError(
                f"prior {prior}: a label is {len(counts) - 1}, and the run has {plural(classes, 'class', 'classes')}"
            )
    return (counts + 1).double().log() - math.log(int(counts.sum()) + classes)


def _default_prior(run: Run, runtime: Runtime) -> str:
    """Rank 0 decides for all hosts. Raises UserError on all ranks."""
    if not runtime.comm.gather(own_places.may_read(run.home, run.experiment.data.trained_on))[0]:
        raise UserError(f"{run.home}: {own_places.NOT_OWN}; give the prior: SHARDS, data or uniform")
    return "data"


class ClassifiedImages(NamedTuple):
    """The classification of images of shards, the names of the classes, and the protocol."""

    classification: Classification
    classes: list[str]
    protocol: dict[str, Any]

    def tree(self) -> dict[str, Any]:
        """JSON values: the scores, the confusion matrix, the reliability diagrams, and the protocol."""
        result = self.classification
        low, high = result.interval
        scores = {"accuracy": result.right / result.n, "accuracy_low": low, "accuracy_high": high}
        posteriors = {"posterior": result.raw, "tempered": result.tempered}
        for name, quality in posteriors.items():
            scores |= {f"{name}_log_loss": quality.log_loss, f"{name}_ece": quality.reliability.error}
        return {
            "scores": scores,
            "floor": {},
            "temperature": result.temperature,
            "classes": self.classes,
            "confusion": result.confusion.tolist(),
            "reliability": {
                name: {column: values.tolist() for column, values in quality.reliability._asdict().items()}
                for name, quality in posteriors.items()
            },
            "protocol": self.protocol,
        }


def classify_images(
    run: Run, shards: str, runtime: Runtime, *, n: int | None, prior: str | None, seed: int
) -> ClassifiedImages:
    """Classify n labelled images of the shards by Bayes' rule. A collective.

    n: None for 1000, or all where they are fewer. prior: `data` (the classes' shares of the run's training data),
    `uniform`, or other shards with labels; None: `data` of a run that this user trained. Raises UserError.
    """
    _require_two_halves(n)
    require_conditional(run)
    prior = prior or _default_prior(run, runtime)
    images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(shards, run, n))
    note_count(n, images.n, shards, runtime)
    _require_two_halves(images.n)
    labels = runtime.comm.raise_on_all_ranks(lambda: images.labels(range(images.n)))
    prior_of_class = runtime.comm.raise_on_all_ranks(lambda: log_prior(run, prior))
    result = classify(log_likelihoods(run, images, seed, runtime) + prior_of_class, labels, seed)
    held = result.n - result.n // 2
    options = {"prior": prior, "seed": seed, "precision": str(runtime.dtype).removeprefix("torch.")}
    protocol = {
        "metrics": {
            "accuracy": {"interval": "Wilson 95%"},
            "log_loss": {"unit": "nats", "n": held},
            "ece": {"bins": calibration.BINS, "n": held},
        },
        "model": {"stage": run.experiment.stage.kind, **options, **run.describe()},
        "reference": {"n": result.n, **images.describe()},
        **provenance(),
    }
    return ClassifiedImages(result, _class_names(images, run.shape.classes), protocol)


def _require_two_halves(n: int | None) -> None:
    if n is not None and n < 4:
        raise UserError(f"n is {n}; give 4 or more, for two halves of at least 2 images")


def require_conditional(run: Run) -> None:
    """Raise UserError where the run has no likelihood given a class."""
    scoring_stage(run)
    if not is_conditional(run):
        raise UserError(
            f"{run.home}: classification compares p(x|y) over the classes y, and this run of stage.kind "
            f"{run.experiment.stage.kind} has none; give a ddpm, vae, flow or autoregressive run trained "
            f"with data.labels=true and stage.conditional=true"
        )


def classify(logits: Float64[Tensor, "n k"], labels: Int[Tensor, " n"], seed: int) -> Classification:
    """The likeliest class of each image, and the calibration of p(y|x) on one half of the images, drawn by the seed.

    logits: log p(x|y) + log p(y). The temperature is fitted on the other half.
    """
    n, k = logits.shape
    confusion = torch.bincount(k * labels + logits.argmax(dim=1), minlength=k * k).reshape(k, k)
    order = torch.from_numpy(permutation(n, seed, "calibration"))
    fitted, held = order[: n // 2], order[n // 2 :]
    temperature = calibration.fit_temperature(logits[fitted], labels[fitted])

    def judge(logits: Tensor) -> Calibration:
        reliability = calibration.reliability(logits.softmax(dim=1), labels[held])
        return Calibration(calibration.log_loss(logits, labels[held]), reliability)

    return Classification(confusion, temperature, judge(logits[held]), judge(logits[held] / temperature))


def _class_names(images: ShardImages, classes: int) -> list[str]:
    """The names of the run's classes in the index of the images, else their numbers."""
    names = images.shards.classes or []
    return [names[i] if i < len(names) else str(i) for i in range(classes)]
