"""Independent troubles, two or three at a time, which one run of `diffpipe doctor` finds together."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from typing import NamedTuple

from diffpipe.experiment import resources
from tests.support.doctor_troubles import Plant, Site, cut, damage, flip, relabel, undecodable


def both_changed(site: Site) -> None:
    cut(site)
    flip(max(site.images.glob("*.tar")))


def no_libraries(*names: str) -> Plant:
    find = importlib.util.find_spec
    return lambda site: site.patch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest)
    )


def other_versions(site: Site) -> None:
    version = importlib.metadata.version
    others = {"einops": "1.2.3", "pydantic": "0.1"}
    site.patch.setattr(importlib.metadata, "version", lambda name: others.get(name) or version(name))


class Pair(NamedTuple):
    """Troubles that are planted together, and the beginning or a part of the finding of each."""

    findings: tuple[str, ...]
    plant: Plant = lambda site: None
    words: tuple[str, ...] = ()


_HELD_OUT = "data.test=configs/fashion_mnist/shards/test"
PAIRS = {
    "two shards": Pair((r"00.*tar has \d+ bytes", "01.*tar was changed after indexing"), both_changed),
    "training and held-out shards": Pair(
        (r"00.*tar has \d+ bytes", "no/test: no such shards"), cut, ("data.test=no/test", "validate.every=1")
    ),
    "two sources": Pair(
        ("no/a: no such shards", "no/b: no such shards"),
        words=("data.train=null", "data.sources=[{url: no/a}, {url: no/b}]"),
    ),
    "two secrets": Pair(
        ("variable UNSET_A is not set", "variable UNSET_B is not set"),
        words=("data.test=https://${UNSET_A}@host/shards?token=${UNSET_B}",),
    ),
    "two keys": Pair(("unknown key train.step$", "unknown key seeds$"), words=("train.step=1", "seeds=5")),
    "two words that are no overrides": Pair(("'steps' is not an", "'seed' is not an"), words=("steps", "seed")),
    "two trackers": Pair(
        ("wandb is not installed", "mlflow is not installed"),
        no_libraries("wandb", "mlflow"),
        ("train.trackers=[wandb,mlflow]",),
    ),
    "two libraries": Pair(("einops 1.2.3 is installed", "pydantic 0.1 is installed"), other_versions),
    "two metrics, and too many images": Pair(
        ("fax", "fox", "eval.n is 99"), words=("eval.every=1", "eval.n=99", "eval.metrics=[fax,fox]", _HELD_OUT)
    ),
    "scores and validation": Pair(
        ("eval.n is 99", "validate.n is 99999"),
        words=("eval.every=1", "eval.n=99", "validate.every=1", "validate.n=99999", _HELD_OUT),
    ),
    "two images": Pair(("a.tar: 0: not an image", "a.tar: 1: not an image"), undecodable, ("data.batch_size=8",)),
    "the seed and the model": Pair(
        ("is of another model: stage.network.channels", "is of another experiment: seed was 0 and is 5"),
        words=("seed=5", "stage.network.channels=16"),
    ),
    "the seed and the shards": Pair(
        ("is of another experiment: seed", "was trained on other data"), relabel, ("seed=5",)
    ),
    "two checkpoints": Pair(("step-00000001", "step-00000002"), lambda site: damage(site, all_of_them=True)),
    "two options of the launcher": Pair(
        ("ACCELERATE_MIXED_PRECISION=bf16", "ACCELERATE_DYNAMO_BACKEND=inductor"),
        lambda site: [
            site.patch.setenv(*pair)
            for pair in (("ACCELERATE_MIXED_PRECISION", "bf16"), ("ACCELERATE_DYNAMO_BACKEND", "inductor"))
        ],
    ),
    "the device and the model": Pair(
        ("device is cuda", "is of another model"), words=("train.device=cuda", "stage.network.channels=16")
    ),
    "shards, a codec and initial weights": Pair(
        ("no/shards: no such shards", "stage.codec.run: no/codec", "run.init: no/run"),
        lambda site: shutil.rmtree(site.run),
        ("data.train=no/shards", "stage.codec={kind: vae, run: no/codec}", "run.init=no/run"),
    ),
    "a codec and initial weights": Pair(
        ("stage.codec.run: no/codec", "run.init: no/run"),
        lambda site: shutil.rmtree(site.run),
        ("stage.codec={kind: vae, run: no/codec}", "run.init=no/run"),
    ),
    "memory and loader processes": Pair(
        ("the job needs at least", "loader processes on 1 processor"),
        lambda site: [
            site.patch.setattr(resources, "available_memory", lambda: 10_000),
            site.patch.setattr("os.sched_getaffinity", lambda _: {0}),
        ],
        ("data.workers=9",),
    ),
    "the optimizer and the scores": Pair(
        ("optimizer.lr_factors names other", "eval.reconstruction scores reconstructed images"),
        words=("optimizer.lr_factors={other: 2}", "eval.reconstruction=4"),
    ),
}
