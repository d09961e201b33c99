"""Exported weights: the networks' own tensors, diffusers' images from the same noise, what cannot be written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from safetensors.torch import load_file

from diffpipe.errors import UserError
from diffpipe.evaluation.export import ExportFormat, export
from diffpipe.rng import KeyedRNG
from tests.support.randomized import randomized
from tests.support.runs import Noise, opened_run, saved_run
from tests.support.stage_cases import CASES, SHAPE


def test_each_network_is_a_file_of_its_tensors(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    run = replace(opened_run(Noise(), tmp_path / "run"), nets={"denoiser": net})
    export(run, tmp_path / "out", "safetensors")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "denoiser.safetensors"]
    torch.testing.assert_close(load_file(tmp_path / "out" / "denoiser.safetensors"), dict(net.state_dict()))


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give a folder that can be written"):
        export(opened_run(Noise(), tmp_path / "run"), tmp_path / "file" / "out", "safetensors")


@pytest.mark.parametrize("to", get_args(ExportFormat))
def test_what_is_there_is_never_replaced(tmp_path: Path, to: ExportFormat) -> None:
    run = opened_run(Noise(), tmp_path / "run")
    folder, file = tmp_path / "photos", tmp_path / "weights.safetensors"
    folder.mkdir()
    for path in (folder / "a.png", file):
        path.write_bytes(b"mine")
    for out in (folder, folder / "a.png", *([file] if to == "safetensors" else [])):
        with pytest.raises(UserError, match="exists already; remove it or give another name"):
            export(run, out, to)
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("to", get_args(ExportFormat))
def test_nothing_is_written_into_a_run_or_a_checkpoint(tmp_path: Path, to: ExportFormat) -> None:
    saved_run(tmp_path / "other")
    run = opened_run(Noise(), tmp_path / "run")
    (checkpoint,) = (tmp_path / "other" / "checkpoints").glob("step-*")
    for out in (tmp_path / "other", checkpoint):
        before = sorted(path.name for path in out.iterdir())
        with pytest.raises(UserError, match="a run directory or a checkpoint; give another folder"):
            export(run, out, to)
        assert sorted(path.name for path in out.iterdir()) == before


SAMPLED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "ancestral": (["sampler.kind=ancestral"], {}),
    "large variance": (["sampler.kind=ancestral", "sampler.variance=large", "sampler.spacing=linspace"], {}),
    "learned variance": (["sampler.kind=ancestral", "learned_variance=true", "schedule.kind=cosine"], {}),
    "attention and heads": (
        ["sampler.kind=ancestral", "network.attention=[8]", "network.channel_mult=[1,2,2]", "network.head_channels=4"],
        {},
    ),
    "ddim": (["sampler.kind=ddim"], {"eta": 0.0, "use_clipped_model_output": True}),
    "ddim, v": (
        ["sampler.kind=ddim", "sampler.eta=0.5", "prediction=v", "schedule={kind: cosine, zero_terminal_snr: true}"],
        {"eta": 0.5, "use_clipped_model_output": True},
    ),
    "ddim, x0": (
        ["sampler.kind=ddim", "prediction=x0", "schedule={kind: sigmoid, steps: 100}", "sampler.clip=false"],
        {},
    ),
}


@pytest.mark.parametrize("case", SAMPLED)
def test_their_pipeline_gives_the_same_images_from_the_same_noise(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the rounding to uint8: theirs are floats, and their tables are float32."""
    words, options = SAMPLED[case]
    words = ["stage.conditional=false", "stage.sampler.steps=5", *(f"stage.{word}" for word in words)]
    stage: Any = CASES["ddpm"].experiment("run.dir=x", *words).stage.build(SHAPE, {})
    run = replace(opened_run(stage, tmp_path / "run", *words), shape=SHAPE)
    net: Any = randomized(run.nets["denoiser"])
    net.out.weight.detach().mul_(0.2)  # outputs as of a trained network, so that float32 errors do not grow
    assert export(run, tmp_path / "out", "diffusers") == []

    rng, n = KeyedRNG(7, torch.arange(3)), 3
    ours = stage.generate(run.nets, rng, None)
    kind: Any = DDPMPipeline if "ancestral" in words[2] else DDIMPipeline
    pipeline = kind.from_pretrained(tmp_path / "out")
    draws = iter([rng.normal("start", (1, 8, 8)), *(rng.normal("reverse", (1, 8, 8), stream=i) for i in range(5))])
    for module in (pipeline_ddpm, pipeline_ddim, scheduling_ddpm, scheduling_ddim):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=n, num_inference_steps=5, output_type="pt", **options).images
    assert ours.float().std() > 5, "images of one colour would tell nothing"
    assert (255 * theirs - ours).abs().max() <= 0.5 + 0.05


@pytest.mark.parametrize(
    ("case", "words", "complaint"),
    [
        ("gan", [], "is a gan, for which diffusers has no pipeline"),
        ("ddpm", ["stage.prediction=edm", "stage.schedule={kind: edm}"], "stage.schedule.kind is edm"),
        ("ddpm", ["stage.network.channel_mult=[2,2]"], "channel_mult starts with 2"),
    ],
)
def test_what_diffusers_has_no_class_for_is_refused(
    case: str, words: list[str], complaint: str, tmp_path: Path
) -> None:
    run = opened_run(Noise(), tmp_path / "run", *words, case=case)
    with pytest.raises(UserError, match=complaint):
        export(run, tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


def test_a_sampler_that_the_folder_has_not_is_said(tmp_path: Path) -> None:
    stage: Any = CASES["ddpm"].experiment("run.dir=x").stage.build(SHAPE, {})
    notes = export(opened_run(stage, tmp_path / "run", "stage.sampler.kind=unipc"), tmp_path / "out", "diffusers")
    assert "class_labels" in notes[0]
    assert notes[1] == "the scheduler is DDIMScheduler, where the run samples by unipc"


def test_a_file_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a diffusers pipeline is a folder; give a name without \.safetensors"):
        export(opened_run(Noise(), tmp_path / "run"), tmp_path / "x.safetensors", "diffusers")
