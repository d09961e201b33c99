"""Checks before the first step: whatever the training would need later is refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data.decode import latents
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.preflight import (
    enlarged_images,
    open_data,
    require_codec_of_latents,
    require_fit,
    require_writable,
)
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from tests.support.runs import Coder, Noise, indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import png, random_pixels, write_tar

SHA256 = "ab" * 32


@pytest.fixture
def images(tmp_path: Path) -> str:
    return indexed_shards(tmp_path / "images", 6, 6)


def encoded_shards(folder: Path, row: latents.Latents) -> ShardSet:
    """Shards that name the checkpoint with SHA256 as their encoder."""
    folder.mkdir()
    write_tar(folder / "a.tar", {f"{i}.{latents.LATENTS}": latents.to_bytes(row) for i in range(3)})
    write_index(folder)
    (folder / latents.CODEC).write_text(json.dumps({"sha256": SHA256}))
    return shard_set.load(str(folder))


@pytest.fixture
def encoded(tmp_path: Path) -> ShardSet:
    """Shards of latents."""
    return encoded_shards(tmp_path / "latents", np.zeros((8, 2, 2), dtype=np.float32))


def experiment(home: Path, images: str, *words: str) -> Experiment:
    words = ("data.batch_size=4", "data.test=null", f"run.dir={home / 'run'}", f"data.train={images}", *words)
    return CASES["ddpm"].experiment(*words)


def test_the_shape_of_the_data_has_classes_where_labels_are_asked_for(tmp_path: Path, images: str) -> None:
    shards, shape = open_data(experiment(tmp_path, images, "data.labels=true"), 1)
    assert (shards.total, shape) == (12, ImageShape(1, square(8), 3))
    labels = ("data.labels=false", "stage.conditional=false", "stage.label_dropout=0", "stage.sampler.guidance=1")
    assert open_data(experiment(tmp_path, images, *labels), 1)[1] == ImageShape(1, square(8), 0)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path, images: str) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size"):
        open_data(experiment(tmp_path, images), 8)


def test_scores_that_the_stage_or_the_data_cannot_give_are_refused(tmp_path: Path, images: str) -> None:
    shards = shard_set.load(images)
    with pytest.raises(UserError, match=r"eval\.every scores generated images, .* generates none; set eval\.every=0"):
        require_fit(experiment(tmp_path, images, "eval.every=1"), Coder(), shards)
    with pytest.raises(UserError, match=r"eval\.every needs images to compare with; set data\.test"):
        require_fit(experiment(tmp_path, images, "eval.every=1"), Noise(), shards)
    with pytest.raises(UserError, match="unknown metric 'fdi'"):
        require_fit(
            experiment(tmp_path, images, "eval.every=1", f"data.test={images}", "eval.metrics=[fdi]"), Noise(), shards
        )
    with pytest.raises(UserError, match=r"eval\.n is 13, and data\.train \(.*\) holds 12 samples"):
        require_fit(experiment(tmp_path, images, "eval.every=1", f"data.test={images}", "eval.n=13"), Noise(), shards)
    with pytest.raises(UserError, match=r"eval\.reconstruction: .* hold 12 images, fewer than 13"):
        require_fit(experiment(tmp_path, images, "eval.reconstruction=13"), Coder(), shards)


def test_images_that_training_enlarges_are_counted_in_a_sample(tmp_path: Path, images: str, encoded: ShardSet) -> None:
    assert enlarged_images(experiment(tmp_path, images, "data.resolution=8"), shard_set.load(images)) is None
    remark = enlarged_images(experiment(tmp_path, images, "data.resolution=16"), shard_set.load(images))
    assert remark is not None
    assert remark.startswith("12 of 12 sampled images are smaller than data.resolution=16: ")
    assert enlarged_images(experiment(tmp_path, images, "data.resolution=16"), encoded) is None
    names = [f"{i:03d}" for i in range(200)]
    sizes = {name: (8, 8) if i == 199 else (16, 16) for i, name in enumerate(names)}
    members = {f"{name}.png": png(random_pixels(0, size)) for name, size in sizes.items()}
    folder = tmp_path / "some"
    folder.mkdir()
    for shard, part in enumerate((names[:7], names[7:])):
        write_tar(folder / f"{shard}.tar", {f"{name}.png": members[f"{name}.png"] for name in part})
    write_index(folder)
    remark = enlarged_images(experiment(tmp_path, images, "data.resolution=[9,16]"), shard_set.load(str(folder)))
    assert remark is not None
    assert remark.startswith("1 of 64 sampled images is smaller than data.resolution=[9,16]: ")


def test_a_checkpoints_folder_is_made_and_one_that_cannot_be_is_refused(tmp_path: Path) -> None:
    require_writable(tmp_path / "run" / "checkpoints")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoints: .*; give a run\.dir that can be written"):
        require_writable(tmp_path / "file" / "checkpoints")


def test_latents_are_for_the_codec_that_encoded_them(encoded: ShardSet) -> None:
    codec = CASES["latent_ddpm"].experiment(f"stage.codec.sha256={SHA256}")
    require_codec_of_latents(codec, encoded)
    with pytest.raises(UserError, match=rf"encoded by the checkpoint with sha256 {SHA256}, .* the one with {'c' * 64}"):
        require_codec_of_latents(CASES["latent_ddpm"].experiment(f"stage.codec.sha256={'c' * 64}"), encoded)
    for name in ("ddpm", "vae", "autoregressive, codes"):
        line = rf"hold latents, which are for stage\.kind=ddpm with stage\.codec\.kind=vae; set both, .*sha256 {SHA256}"
        with pytest.raises(UserError, match=line):
            require_codec_of_latents(CASES[name].experiment(), encoded)


def test_codes_are_for_an_autoregressive_stage_alone(tmp_path: Path) -> None:
    codes = encoded_shards(tmp_path / "codes", np.zeros((1, 1, 16), dtype=np.int32))
    require_codec_of_latents(CASES["autoregressive, codes"].experiment(f"stage.codec.sha256={SHA256}"), codes)
    for words in (("ddpm",), ("latent_ddpm", f"stage.codec.sha256={'c' * 64}"), ("autoregressive",)):
        line = rf"hold codes, which are for stage\.kind=autoregressive with stage\.codec\.kind=vq; .*sha256 {SHA256}"
        with pytest.raises(UserError, match=line):
            require_codec_of_latents(CASES[words[0]].experiment(*words[1:]), codes)
