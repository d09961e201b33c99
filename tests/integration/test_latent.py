"""Latent diffusion through the command: the VAE is found, pinned by its hash, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from diffpipe import plugins
from diffpipe.__main__ import main
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.resolution import square
from diffpipe.train.checkpoint.format import manifest_sha256
from tests.support.commands import HOME, SHARDS, TINY_RUN, TINY_STAGE, metrics, seen, succeeds, tensors

VAE = HOME / "configs" / "fashion_mnist" / "latent_vae.yaml"
DDPM = HOME / "configs" / "fashion_mnist" / "latent_ddpm.yaml"
DATA = [f"data.train={SHARDS}/test/test-000000.tar", "train.device=cpu"]


def train(config: Path, run: Path, *overrides: str) -> int:
    kind = yaml.safe_load(config.read_text())["stage"]["kind"]
    return main(["train", str(config), f"run.dir={run}", *TINY_STAGE[kind], *TINY_RUN, *DATA, *overrides])


def diffuse(run: Path, vae: Path, *overrides: str) -> int:
    return train(DDPM, run, f"stage.codec.run={vae}", *overrides)


def state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("vae")
    assert train(VAE, home, "train.steps=2", "checkpoint.every=1", "eval.reconstruction=20") == 0
    return home


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    home = tmp_path_factory.mktemp("latent")
    assert diffuse(home, vae, "train.steps=1", "sample.every=1", "sample.n=4") == 0
    return home


def test_the_checkpoint_carries_the_scale_of_the_latents(vae: Path, latent: Path) -> None:
    from diffpipe.experiment.run import open_run
    from diffpipe.train.runtime import Runtime

    shards = shard_set.load(f"{SHARDS}/test/test-000000.tar")
    run = open_run(vae, [], Runtime.start("fp32", "cpu"))
    q = run.stage.encode(run.nets, sequential_reader.images(shards, range(shards.total), square(28), 1))  # pyright: ignore[reportAttributeAccessIssue]
    mean, variance = q.mean.mean((0, 2, 3)), q.mean.var((0, 2, 3)) + q.log_variance.exp().mean((0, 2, 3))
    assert state(newest(vae))["latents"] is None
    for weights in ("net", "ema"):
        scale = {
            name: torch.tensor(tensors(newest(latent))[f"{weights}.latent_scale.{name}"]) for name in ("mean", "std")
        }
        torch.testing.assert_close(scale["mean"].flatten(), mean, atol=0.02, rtol=0)
        torch.testing.assert_close(scale["std"].flatten(), variance.sqrt(), atol=0.02, rtol=0)


def test_the_last_checkpoint_says_what_reconstructions_lose_and_how_it_was_measured(vae: Path) -> None:
    from diffpipe.experiment.run import open_run
    from diffpipe.metrics.features import efficientnet_lite0
    from diffpipe.metrics.frechet import frechet_distance
    from diffpipe.metrics.moments import Moments
    from diffpipe.rng import KeyedRNG, permutation
    from diffpipe.train.runtime import Runtime

    found, held_out = state(newest(vae))["reconstruction"], shard_set.load(f"{SHARDS}/test")
    assert state(vae / "checkpoints" / "step-00000001")["reconstruction"] is None
    said, lite0 = found["protocol"], efficientnet_lite0()
    assert said["metrics"]["fd_efficientnet_lite0"]["sha256"] == lite0.sha256
    assert said["metrics"]["fd_efficientnet_lite0"]["resize"] == lite0.resize
    assert said["reference"]["fingerprint"] == held_out.fingerprint
    assert (said["reference"]["n"], said["reference"]["drawn_by_seed"]) == (20, 0)
    about = {"n": 20, "images": "reconstructions of the reference", "step": 2, "weights": "ema"}
    assert about.items() <= said["generated"].items()
    runtime = Runtime.start("auto", "cpu")  # as it was trained: of images as flat as these, rounding shows
    run = open_run(vae, [], runtime)
    images = sequential_reader.images(held_out, permutation(held_out.total, 0, "subset")[:20], square(28), 1)
    with runtime.autocast():
        again = run.stage.reconstruct(run.nets, images, KeyedRNG(0, torch.arange(20)))  # pyright: ignore[reportAttributeAccessIssue]
    expected = frechet_distance(Moments.of(lite0(again)), Moments.of(lite0(images)))
    assert found["scores"] == {"fd_efficientnet_lite0": pytest.approx(expected, rel=1e-4)}


def test_training_on_latents_begins_with_what_their_codec_loses(
    vae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = state(newest(vae))["reconstruction"]["scores"]["fd_efficientnet_lite0"]
    first = vae / "checkpoints" / "step-00000001"
    told = f"codec {newest(vae)}: reconstruction FD {value:.1f} (efficientnet_lite0, n 20)"
    untold = f"codec {first}: no reconstruction FD (the last checkpoint of a training with eval.reconstruction=1000"
    for name, codec, line in (("last", vae, told), ("first", first, untold)):
        assert diffuse(tmp_path / name, codec, "train.steps=1") == 0
        said = [each for each in capfd.readouterr().err.splitlines() if each.startswith("codec ")]
        assert len(said) == 1
        assert said[0].startswith(line)


def test_a_reconstruction_score_that_cannot_be_is_refused_before_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = HOME / "configs" / "fashion_mnist" / "ddpm.yaml"
    line = refusal(capfd, train(pixels, tmp_path, "eval.reconstruction=8"))
    assert "stage.kind ddpm reconstructs none; set eval.reconstruction=0" in line
    line = refusal(capfd, train(VAE, tmp_path, "eval.reconstruction=3"))
    assert "eval.reconstruction is 3, and a score needs 4 images or more" in line
    line = refusal(capfd, train(VAE, tmp_path, "eval.reconstruction=5000"))
    assert "hold 2000 images, fewer than 5000" in line


MAPS = """
def maps(images):
    return [images[..., ::2, ::2] + {}]
diffpipe_feature_networks = {{"maps": maps}}
"""


def test_a_perceptual_loss_keeps_to_its_feature_network_and_only_training_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, module = tmp_path / "run", tmp_path / "looks.py"

    def unload() -> None:
        monkeypatch.setattr(plugins, "_parts", {group: {} for group in plugins.GROUPS})
        monkeypatch.setattr(plugins, "_modules", [])
        sys.modules.pop("looks", None)

    unload()
    patch = ["stage.patch.start=1", "stage.patch.network.channels=8"]
    words = ["data.resolution=8", "stage.perceptual.features=maps", "--plugin", str(module), *patch]
    module.write_text(MAPS.format(1))
    assert train(VAE, run, "train.steps=2", *words) == 0
    assert {"adversarial/patch_generator", "adversarial/perceptual", "discriminator/real"} <= metrics(run)[2].keys()
    first = state(newest(run))["experiment"]["stage"]["perceptual"]["sha256"]
    assert train(VAE, run, "train.steps=3", *words) == 0
    nets = {name.split(".")[1] for name in tensors(newest(run)) if name.startswith("net.")}
    assert nets == {"encoder", "decoder", "discriminator"}  # and nothing of the features
    unload()
    module.write_text(MAPS.format(25))
    capfd.readouterr()
    line = refusal(capfd, train(VAE, run, "train.steps=4", *words))
    assert f"stage.perceptual.sha256 was {first} and is " in line
    line = refusal(capfd, train(VAE, run, "train.steps=4", *words, f"stage.perceptual.sha256={first}"))
    assert "bring that network back" in line
    unload()
    assert main(["sample", str(run), str(tmp_path / "out"), "--n", "1", "--device", "cpu"]) == 0
    words = [word for word in words if word not in ("--plugin", str(module))]
    line = refusal(capfd, train(VAE, run, "train.steps=4", *words))
    assert "stage.perceptual.features: no feature network 'maps'; it is one of efficientnet_lite0; others come" in line


def test_the_codecs_hash_is_pinned_in_the_run_and_the_codec_is_not_saved_again(vae: Path, latent: Path) -> None:
    sha256 = manifest_sha256(newest(vae))
    assert yaml.safe_load((latent / "config.yaml").read_text())["stage"]["codec"]["sha256"] == sha256
    assert state(newest(latent))["experiment"]["stage"]["codec"] == {"kind": "vae", "run": str(vae), "sha256": sha256}
    assert {name.split(".")[1] for name in tensors(newest(latent))} == {"denoiser", "latent_scale"}


def test_it_draws_images_in_training_and_by_the_command(latent: Path, tmp_path: Path) -> None:
    assert (latent / "samples" / "step-00000001.png").exists()
    assert main(["sample", str(latent), str(tmp_path), "--n", "3", "--device", "cpu"]) == 0
    for i in range(3):
        with Image.open(tmp_path / f"{i:06d}.png") as image:
            assert (image.size, image.mode) == ((28, 28), "L")


def test_it_stays_with_its_vae_when_that_trains_on_and_when_it_moves(vae: Path, latent: Path, tmp_path: Path) -> None:
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(vae, moved)
    shutil.copytree(latent, run)
    assert train(VAE, moved, "train.steps=3") == 0
    assert diffuse(run, moved, "train.steps=2") == 0
    pinned = state(newest(run))["experiment"]["stage"]["codec"]["sha256"]
    assert pinned == manifest_sha256(newest(vae)) != manifest_sha256(newest(moved))


def refusal(capfd: pytest.CaptureFixture[str], status: int) -> str:
    assert status == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_another_vae_is_refused_by_both_hashes(
    vae: Path, latent: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert train(VAE, other, "train.steps=1", "seed=9") == 0
    capfd.readouterr()
    ours, theirs = manifest_sha256(newest(vae)), manifest_sha256(newest(other))
    line = refusal(capfd, diffuse(latent, other, "train.steps=2"))
    for part in ("stage.codec.run", str(other), str(ours), str(theirs)):
        assert part in line
    line = refusal(capfd, diffuse(latent, other, "train.steps=2", f"stage.codec.sha256={theirs}"))
    assert f"stage.codec.sha256 was {ours} and is {theirs}" in line
    line = refusal(capfd, main(["sample", str(latent), str(tmp_path), "--codec", str(other), "--device", "cpu"]))
    assert str(ours) in line
    assert str(theirs) in line


def test_a_hash_given_beforehand_is_held_to(vae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = refusal(capfd, diffuse(tmp_path, vae, f"stage.codec.sha256={'ab' * 32}"))
    assert "ab" * 32 in line
    assert str(manifest_sha256(newest(vae))) in line


def test_a_lost_vae_is_named_with_the_key(latent: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(latent), str(tmp_path), "--codec", "/absent/vae", "--device", "cpu"]
    line = refusal(capfd, main(words))
    for part in ("stage.codec.run: /absent/vae: no such directory", "--codec PATH"):
        assert part in line


def test_what_is_no_codec_is_refused(
    vae: Path, latent: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capfd, diffuse(tmp_path, latent))
    assert "is a run of stage.kind=ddpm; give one of stage.kind=vae with spatial latents" in line
    assert "stage.sampler.clip=true" in refusal(capfd, diffuse(tmp_path, vae, "stage.sampler.clip=true"))
    assert "no checkpoint in it" in refusal(capfd, diffuse(tmp_path, tmp_path))


@pytest.mark.parametrize("options", [[], ["--ode"]])
def test_the_density_of_latents_is_no_likelihood_of_images(
    latent: Path, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    line = refusal(capfd, main(["nll", str(latent), f"{SHARDS}/test/test-000000.tar", "--device", "cpu", *options]))
    assert "their density is no likelihood of images" in line


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "out"
    assert main(["encode", str(vae), f"{SHARDS}/test", str(out), "--device", "cpu"]) == 0
    return out


def test_training_from_latents_equals_encoding_on_the_fly(vae: Path, encoded: Path, tmp_path: Path) -> None:
    words = ["train.steps=3", "train.precision=fp32", "train.record_samples=true"]
    assert diffuse(tmp_path / "images", vae, *words) == 0
    assert diffuse(tmp_path / "latents", vae, *words, f"data.train={encoded}/latents-000000.tar") == 0
    assert seen(tmp_path / "latents") == seen(tmp_path / "images")
    expected = metrics(tmp_path / "images")
    for step, values in metrics(tmp_path / "latents").items():
        assert values["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)
    assert sorted(expected) == [1, 2, 3]
    assert main(["sample", str(tmp_path / "latents"), str(tmp_path / "out"), "--n", "1", "--device", "cpu"]) == 0


def test_two_processes_encode_what_one_does(vae: Path, encoded: Path, tmp_path: Path) -> None:
    succeeds("encode", vae, SHARDS / "test", tmp_path / "out", "--device", "cpu", processes=2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["codec.json", "index.safetensors", "latents-000000.tar", "latents-000001.tar"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (encoded / name).read_bytes(), name


def test_latents_that_do_not_fit_are_refused(
    vae: Path, latent: Path, encoded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = str(manifest_sha256(newest(vae)))
    pixels = HOME / "configs" / "fashion_mnist" / "ddpm.yaml"
    line = refusal(capfd, train(pixels, tmp_path / "a", f"data.train={encoded}"))
    assert "hold latents, which are for stage.kind=ddpm with stage.codec.kind=vae" in line
    assert ours in line
    other = tmp_path / "other"
    assert train(VAE, other, "train.steps=1", "seed=9") == 0
    capfd.readouterr()
    line = refusal(capfd, diffuse(tmp_path / "a", other, f"data.train={encoded}"))
    assert ours in line
    assert str(manifest_sha256(newest(other))) in line
    line = refusal(capfd, diffuse(tmp_path / "a", vae, f"data.train={encoded}", "eval.every=1"))
    assert "eval.every=0" in line
    line = refusal(capfd, main(["encode", str(latent), f"{SHARDS}/test", str(tmp_path / "b"), "--device", "cpu"]))
    assert "stage.kind=ddpm" in line
    line = refusal(capfd, main(["encode", str(vae), str(encoded), str(tmp_path / "b"), "--device", "cpu"]))
    assert "no image to encode" in line
    line = refusal(capfd, main(["encode", str(vae), f"{SHARDS}/test", str(encoded), "--device", "cpu"]))
    assert "exists already" in line
