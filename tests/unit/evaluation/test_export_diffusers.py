"""A diffusion transformer exported: DiTPipeline's images from the same noise, and back to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.dit import pipeline_dit
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

import diffpipe
from diffpipe.__main__ import main
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm_config import DDPMConfig
from tests.support.random_runs import random_run

DIT = "stage.network={kind: dit, patch: 2, width: 16, depth: 2, heads: 2}"
WORDS = [DIT, "stage.sampler.clip=false", "stage.sampler.steps=5", "data.class_names=[a,b,c,d,e,f,g,h,i,j]"]
LATENT: dict[str, list[str]] = {
    "ddim": ["stage.sampler.kind=ddim"],
    "ancestral": ["stage.sampler.kind=ancestral"],
    "learned variance, v": ["stage.sampler.kind=ddim", "stage.learned_variance=true", "stage.prediction=v"],
    "without labels": ["stage.sampler.kind=ddim", "stage.conditional=false"],
}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("vae") / "run", "latent_vae")


@pytest.mark.parametrize("case", LATENT)
def test_their_pipeline_gives_the_same_images_from_the_same_noise(
    case: str, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, *LATENT[case], f"stage.codec.run={vae}", f"data.labels={str(case != 'without labels').lower()}"]
    home = random_run(tmp_path / "run", "latent_ddpm", *words)
    assert main(["export", str(home), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    notes = capsys.readouterr().err
    run: Any = diffpipe.load(home, precision="fp32", device="cpu")._run
    rng, labels = KeyedRNG(7, torch.arange(3)), torch.tensor([0, 9, 4])
    ours = run.stage.generate(run.nets, rng, None if case == "without labels" else labels)
    pipeline: Any = DiTPipeline.from_pretrained(tmp_path / "out")
    shape = run.stage.code_shape
    draws = iter([rng.normal("start", shape), *(rng.normal("reverse", shape, stream=i) for i in range(5))])
    for module in (pipeline_dit, scheduling_ddim, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
    pipeline.set_progress_bar_config(disable=True)
    given = [0, 0, 0] if case == "without labels" else labels.tolist()
    options: Any = {"guidance_scale": 1.0, "num_inference_steps": 5, "output_type": "pt"}
    theirs = pipeline(class_labels=given, **options).images
    assert ours.float().std() > 5, "images of one colour would tell nothing"
    assert (255 * theirs - ours).abs().max() <= 0.5 + 0.05
    if case != "without labels":
        assert pipeline.get_label_ids(["c"]) == [2]
        assert "guidance_scale=1" in notes


def test_imported_and_exported_again_all_files_are_the_same_bytes(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, f"stage.codec.run={vae}", "stage.label_dropout=0.25", "stage.learned_variance=true"]
    home, folder, again = random_run(tmp_path / "run", "latent_ddpm", *words), tmp_path / "out", tmp_path / "again"
    assert main(["export", str(home), str(folder), "--to", "diffusers"]) == 0
    assert main(["import", str(folder), str(tmp_path / "back")]) == 2
    assert "its network denoises latents; give --codec RUN" in capsys.readouterr().err
    assert main(["import", str(folder), str(tmp_path / "back"), "--codec", str(vae)]) == 0
    assert main(["export", str(tmp_path / "back"), str(again), "--to", "diffusers"]) == 0
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert all((again / path).read_bytes() == (folder / path).read_bytes() for path in files)
    given, back = (diffpipe.load(path).config for path in (home, tmp_path / "back"))
    assert isinstance(given.stage, DDPMConfig)
    assert isinstance(back.stage, DDPMConfig)
    assert back.stage.network == given.stage.network
    assert (back.stage.label_dropout, back.stage.learned_variance) == (0.25, True)
    assert back.data.class_names == tuple("abcdefghij")


def test_in_pixels_the_transformer_and_the_scheduler_are_loaded_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, folder = random_run(tmp_path / "run", "ddpm", *WORDS, "stage.sampler.kind=ddim"), tmp_path / "out"
    assert main(["export", str(home), str(folder), "--to", "diffusers"]) == 0
    assert "this run diffuses pixels: load its transformer by" in capsys.readouterr().err
    net: Any = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    scheduler: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    run: Any = diffpipe.load(home, precision="fp32", device="cpu")._run
    rng, labels = KeyedRNG(7, torch.arange(2)), torch.tensor([3, 8])
    ours, x = run.stage.generate(run.nets, rng, labels), rng.normal("start", (1, 8, 8))
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(2), labels).sample, t, x).prev_sample
    assert (127.5 * (x.clamp(-1, 1) + 1) - ours).abs().max() <= 0.5 + 0.05
    assert main(["import", str(folder), str(tmp_path / "back"), "--codec", "x"]) == 2
    assert "its network denoises pixels; leave out --codec" in capsys.readouterr().err
    assert main(["import", str(folder), str(tmp_path / "back")]) == 0
    back = diffpipe.load(tmp_path / "back").networks["denoiser"].state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in run.nets["denoiser"].state_dict().items())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            [f"{DIT[:-1]}, qk_norm: true}}"],
            "stage.network.qk_norm is true, and diffusers' DiTTransformer2DModel has false",
        ),
        (
            [DIT, "stage.prediction=flow", "stage.schedule={kind: flow}"],
            "stage.schedule.kind is flow, and the diffusers pipelines for this network",
        ),
    ],
)
def test_what_their_pipeline_cannot_sample_from_is_refused_in_one_line(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = random_run(tmp_path / "run", "ddpm", *words)
    assert main(["export", str(home), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("diffpipe export: error: ")
    assert complaint in line
    assert not (tmp_path / "out").exists()
