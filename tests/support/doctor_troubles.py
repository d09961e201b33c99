"""Troubles to plant in a healthy set-up, and what `diffpipe doctor` says of each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import diffpipe.experiment.doctor.disk
from diffpipe.data.index.write_index import write_index
from diffpipe.experiment import resources
from tests.support.commands import CONFIG
from tests.support.runs import TINY_WORDS, indexed_shards
from tests.support.tars import write_tar

WARMUP = "optimizer.warmup=1"


class Site(NamedTuple):
    """A healthy set-up to plant a trouble in: shards of 12 images, and a run of two steps on them."""

    images: Path
    run: Path
    patch: pytest.MonkeyPatch

    @property
    def newest(self) -> Path:
        return max((self.run / "checkpoints").glob("step-*"))

    def words(self, *words: str) -> list[str]:
        mine = [f"data.train={self.images}", f"run.dir={self.run}", "data.batch_size=4", "train.steps=9", WARMUP]
        return [str(CONFIG), *TINY_WORDS, *mine, *words]


Plant = Callable[[Site], object]


def cut(site: Site) -> None:
    tar = min(site.images.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_index(site: Site) -> None:
    for path in site.images.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def relabel(site: Site) -> None:
    shutil.rmtree(site.images)
    indexed_shards(site.images, 6, 5)


def damage(site: Site, *, all_of_them: bool) -> None:
    for checkpoint in (site.run / "checkpoints").glob("step-*") if all_of_them else [site.newest]:
        flip(next(checkpoint.glob("*.safetensors")))


def undecodable(site: Site) -> None:
    shutil.rmtree(site.images)
    site.images.mkdir()
    write_tar(
        site.images / "a.tar",
        {f"{i}.{kind}": data for i in range(8) for kind, data in (("png", b"no image"), ("cls", b"1"))},
    )
    write_index(site.images)
    shutil.rmtree(site.run)


def no_room(site: Site) -> None:
    site.patch.setattr(diffpipe.experiment.doctor.disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


def env(name: str, value: str) -> Plant:
    return lambda site: site.patch.setenv(name, value)


def many_threads(site: Site) -> None:
    site.patch.setenv("OMP_NUM_THREADS", "999")
    site.patch.setattr("torch.get_num_threads", lambda: 999)


def other_version(site: Site) -> None:
    version = importlib.metadata.version
    site.patch.setattr(importlib.metadata, "version", lambda name: "1.2.3" if name == "einops" else version(name))


def no_wandb(site: Site) -> None:
    find = importlib.util.find_spec
    site.patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))


class Trouble(NamedTuple):
    """A trouble: what plants it, the words that `doctor` gets, and its finding.

    refused: whether `train` refuses the same words, in the same sentence.
    """

    level: str
    finding: str
    remedy: str
    plant: Plant = lambda site: None
    words: tuple[str, ...] = ()
    refused: bool = False


TROUBLES = {
    "a mistyped key": Trouble(
        "error", "unknown key train.step", "did you mean train.steps", words=("train.step=1",), refused=True
    ),
    "no such device": Trouble(
        "error",
        "device is cuda, and torch sees no CUDA device here",
        "give cpu or auto",
        words=("train.device=cuda",),
        refused=True,
    ),
    "an option of the launcher": Trouble(
        "error",
        "ACCELERATE_MIXED_PRECISION=bf16",
        "use train.precision instead",
        env("ACCELERATE_MIXED_PRECISION", "bf16"),
        refused=True,
    ),
    "a tracker that is not installed": Trouble(
        "error",
        "wandb is not installed",
        "diffpipe[trackers]",
        no_wandb,
        words=("train.trackers=[wandb]",),
        refused=True,
    ),
    "no index": Trouble("error", "index", "diffpipe index", no_index, refused=True),
    "a tar of another size": Trouble(
        "error", r"bytes, but \d+ in the index", "restore it, or run: diffpipe index", cut, refused=True
    ),
    "a tar of other bytes": Trouble(
        "error",
        "its sha256 is not the index's",
        "diffpipe index",
        lambda site: flip(min(site.images.glob("*.tar"))),
        refused=True,
    ),
    "other shards than before": Trouble(
        "error", "was trained on other data: .*tar", "data.allow_changes=true", relabel, refused=True
    ),
    "another seed than before": Trouble(
        "error", "seed was 0 and is 5", "run.allow_changes", words=("seed=5",), refused=True
    ),
    "another model than before": Trouble(
        "error",
        "is of another model: stage.network.channels was 8 and is 16",
        "restore the config",
        words=("stage.network.channels=16",),
        refused=True,
    ),
    "no whole checkpoint": Trouble(
        "error",
        "no checkpoint in .* is whole",
        "restore one from a copy",
        lambda site: damage(site, all_of_them=True),
        refused=True,
    ),
    "a damaged checkpoint": Trouble(
        "warning", "step-00000002: .* has been altered", "an older one", lambda site: damage(site, all_of_them=False)
    ),
    "a run that has all its steps": Trouble(
        "note", "trained to step 2 already", "raise train.steps", words=("train.steps=2",)
    ),
    "a run directory below a file": Trouble(
        "error",
        "cannot write to the run directory .*Not a directory",
        "another run.dir",
        words=("run.dir=pyproject.toml/run",),
        refused=True,
    ),
    "scores of more images than there are": Trouble(
        "error",
        "eval.n is 99",
        "give that many or fewer",
        words=("eval.every=1", "eval.n=99", "data.test=configs/fashion_mnist/shards/test"),
        refused=True,
    ),
    "an image that cannot be decoded": Trouble(
        "error",
        "a.tar: .*: not an image that can be decoded",
        "replace or remove it",
        undecodable,
        ("data.batch_size=1",),
    ),
    "images that are smaller than the resolution": Trouble(
        "note",
        "12 of 12 sampled images are smaller than data.resolution=16",
        "lower data.resolution",
        lambda site: shutil.rmtree(site.run),
        words=("data.resolution=16",),
    ),
    "a batch that cannot be split": Trouble(
        "error", "data.batch_size=4 cannot be split over 8 processes", "make it 8 or more", words=("--world=8",)
    ),
    "uneven shares": Trouble(
        "warning",
        "micro-batches have 1 or 2 images: 44% of the time",
        "data.batch_size=16",
        words=("--world=8", "data.batch_size=9"),
    ),
    "copies that do not divide": Trouble(
        "error",
        "6 processes cannot be divided into copies of 4",
        "a divisor of 6",
        words=("--world=6", "data.batch_size=6", "train.parallel=hsdp", "train.shard_size=4"),
    ),
    "more shards than rows": Trouble(
        "warning",
        "together they hold [0-9.]+ times the networks",
        "train.parallel=hsdp",
        words=("--world=64", "data.batch_size=64", "train.parallel=fsdp", "data.workers=0"),
    ),
    "too many connections": Trouble(
        "error",
        "a process of 512 needs about 16.* open files, .* may have 1024",
        "ulimit -Hn",
        lambda site: site.patch.setattr("resource.getrlimit", lambda _: (1024, 1024)),
        words=("--world=512", "data.batch_size=512"),
    ),
    "machines with a /tmp each": Trouble(
        "error",
        "each of 2 machines has a temporary folder of its own",
        "that all machines share",
        words=("--world=2", "--machines=2", "run.dir=/tmp/some/run"),
    ),
    "too many threads": Trouble(
        "warning",
        "2 processes with 999 threads each",
        "OMP_NUM_THREADS=",
        many_threads,
        words=("--world=2",),
    ),
    "too many loader processes": Trouble(
        "warning",
        "loader processes on 1 processor: more than 1 hardly",
        "lower data.workers",
        lambda site: site.patch.setattr("os.sched_getaffinity", lambda _: {0}),
        ("data.workers=9",),
    ),
    "no memory": Trouble(
        "error",
        "the job needs at least .* of memory on this machine",
        "lower data.batch_size",
        lambda site: site.patch.setattr(resources, "available_memory", lambda: 10_000),
    ),
    "no room for checkpoints": Trouble("error", "3 checkpoints of", "lower checkpoint.keep_last", no_room),
    "fp16 after another precision": Trouble(
        "error",
        "was trained without fp16, so the scale of its loss is missing",
        "resume it with train.precision=bf16 or fp32",
        words=("train.precision=fp16",),
        refused=True,
    ),
    "fp16 on a CPU": Trouble(
        "warning",
        "train.precision is fp16, which is for GPUs",
        "set train.precision=",
        lambda site: shutil.rmtree(site.run),
        words=("train.precision=fp16", "train.device=cpu"),
    ),
    "a variable that slows GPUs": Trouble(
        "warning", "CUDA_LAUNCH_BLOCKING=1", "unset it", env("CUDA_LAUNCH_BLOCKING", "1")
    ),
    "a library of another version": Trouble(
        "error", "einops 1.2.3 is installed, and diffpipe needs", "pip install 'einops", other_version
    ),
    "no weights for a score": Trouble(
        "warning",
        "eval.metrics needs the Inception weights",
        "DIFFPIPE_INCEPTION",
        words=("eval.every=5", "eval.n=4", "eval.metrics=[fid]", "data.test=configs/fashion_mnist/shards/test"),
    ),
    "no credentials": Trouble(
        "warning", "s3://bucket/shards: no credentials", "set AWS_PROFILE", words=("data.test=s3://bucket/shards",)
    ),
    "a secret that is not set": Trouble(
        "error",
        "the environment variable UNSET_TOKEN is not set",
        "set it",
        words=("data.test=https://host/shards?token=${UNSET_TOKEN}",),
    ),
}
