"""How well a run's score separates abnormal images from normal ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from diffpipe.data import own_places
from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import is_conditional, score_images, scoring_stage
from diffpipe.experiment.run import Run
from diffpipe.metrics.complexity import complexity
from diffpipe.metrics.detection import Detection, detect, typicality
from diffpipe.metrics.protocol import provenance
from diffpipe.train.runtime import Runtime

_TRAINING = "training"


class AnomalyDetection(NamedTuple):
    """The scores of normal and abnormal images, and how well they separate the two.

    scores: by set (`normal`, `abnormal`), then by the score's name: the run's own (kind, in `unit`); for a likelihood
    also `complexity` and `typicality`. pixels: by set. detections: by the score's name.
    """

    kind: str
    unit: str
    scores: dict[str, dict[str, Float[np.ndarray, " _"]]]
    pixels: dict[str, UInt8[Tensor, "_ c h w"]]
    detections: dict[str, Detection]
    protocol: dict[str, Any]

    @property
    def n(self) -> int:
        """The number of scored images."""
        return sum(map(len, self.pixels.values()))

    def tree(self) -> dict[str, Any]:
        """JSON values: the scores, the figures with their intervals, and the protocol."""
        figures = {
            name: {figure: interval._asdict() for figure, interval in detection._asdict().items()}
            for name, detection in self.detections.items()
        }
        scores = {
            f"{name}_{figure}": interval["value"] for name, of in figures.items() for figure, interval in of.items()
        }
        return {"scores": scores, "floor": {}, "detection": figures, "unit": self.unit, "protocol": self.protocol}

    def table(self) -> str:
        """One line per score, each figure with its 95% interval."""
        lines = [f"{'score':>12}  {'AUROC':^24}  {'average precision':^24}  {'FPR at 95% TPR':^24}"]
        for name, detection in self.detections.items():
            cells = "  ".join(f"{f.value:.4f} ({f.low:.4f} to {f.high:.4f})" for f in detection)
            lines.append(f"{name:>12}  {cells}")
        if self.unit == "bits/dim" and self.detections[self.kind].auroc.value < 0.5:
            lines.append(
                "the likelihood ranks the abnormal images as more normal than the normal ones, as likelihoods do with "
                "images simpler than the training data; complexity and typicality correct for this, but not always"
            )
        if self.unit == "bits/dim" and "typicality" not in self.detections:
            lines.append(f"no typicality: {own_places.NOT_OWN}; give the training SHARDS")
        return "\n".join(lines)


def detect_anomalies(
    run: Run, normal: str, abnormal: str, runtime: Runtime, *, training: str | None = None, n: int, seed: int
) -> AnomalyDetection:
    """Score up to n images of the shards `normal` and as many of `abnormal`. A collective.

    training: shards that the run was trained on, for the typicality of a likelihood; None: those of a run that this
    user trained, and no typicality of any other.
    Raises UserError for a stage without a score, a class-conditional one, and images of another size than the run's.
    """
    scoring_stage(run)
    if is_conditional(run):
        raise UserError(
            f"{run.home}: a class-conditional stage scores an image given its class, and an anomaly has "
            f"none; give a run trained with stage.conditional=false"
        )
    sets = {
        "normal": runtime.comm.raise_on_all_ranks(lambda: _images("normal", normal, run, n)),
        "abnormal": runtime.comm.raise_on_all_ranks(lambda: _images("abnormal", abnormal, run, n)),
    }
    likelihoods = {name: score_images(run, images, seed, runtime) for name, images in sets.items()}
    kind, unit = likelihoods["normal"].kind, likelihoods["normal"].unit
    scores = {name: {kind: likelihoods[name].values["score"].numpy()} for name in sets}
    pixels = {name: images.images(range(images.n)) for name, images in sets.items()}
    described = dict(sets)
    if unit == "bits/dim":
        trained_on = training or _own_training_shards(run, runtime)
        trained = runtime.comm.raise_on_all_ranks(
            lambda: None if trained_on is None else _images(_TRAINING, trained_on, run, n)
        )
        trained_scores = None if trained is None else score_images(run, trained, seed, runtime).values["score"].numpy()
        described |= {} if trained is None else {"training": trained}
        for name, by_score in scores.items():
            raw = by_score[kind]
            by_score["complexity"] = raw - complexity(pixels[name])
            if trained_scores is not None:
                by_score["typicality"] = typicality(raw, trained_scores)
    detections = {name: detect(scores["normal"][name], scores["abnormal"][name]) for name in scores["normal"]}
    figures = [f"{name}_{figure}" for name in detections for figure in Detection._fields]
    protocol: dict[str, Any] = {
        "metrics": {figure: {"interval": "bootstrap 95%"} for figure in figures},
        "model": {"stage": run.experiment.stage.kind, "kind": kind, "unit": unit},
        "run": run.describe(),
        "seed": seed,
        "precision": str(runtime.dtype).removeprefix("torch."),
        **{name: {"n": images.n, **images.describe()} for name, images in described.items()},
        **provenance(),
    }
    return AnomalyDetection(kind, unit, scores, pixels, detections, protocol)


def _own_training_shards(run: Run, runtime: Runtime) -> str | list[str] | None:
    """The shards that the run was trained on; None where the run alone says which. Rank 0 decides for all hosts."""
    trained_on = run.experiment.data.trained_on
    return trained_on if runtime.comm.gather(own_places.may_read(run.home, trained_on))[0] else None


def _images(option: str, shards: str | list[str], run: Run, n: int) -> ShardImages:
    """The images, which must already have the run's size: resizing alone could tell the two sets apart."""
    loaded = shard_set.load(shards)
    size = run.shape.resolution
    height, width = ShardImages(loaded, run.shape.channels, None).images(range(1)).shape[2:]
    if option != _TRAINING and (height, width) != size:
        raise UserError(
            f"{option}: {shards} holds images of {height}x{width} and the run was trained at "
            f"{size.height}x{size.width} (height x width); pack both sets alike: diffpipe pack … --resolution {size}"
        )
    return ShardImages(loaded, run.shape.channels, size, n=min(n, loaded.total))
