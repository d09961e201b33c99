"""Runs made of weights from elsewhere: the same images, the same bytes back, trained further, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler

import diffpipe
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from tests.support.diffusers_folders import saved_folder, unet2d
from tests.support.runs import indexed_shards

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HO = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
FOLDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler(), {}),
    "Ho et al.": (DDPMScheduler(variance_type="fixed_large"), HO),
    "ddim, v": (DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), {}),
    "x0": (DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"), {"attention_head_dim": None}),
    "learned variance": (DDPMScheduler(variance_type="learned_range"), {"out_channels": 2}),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_exported_again_it_is_the_same_weights_and_configs(case: str, tmp_path: Path) -> None:
    scheduler, changes = FOLDERS[case]
    folder = saved_folder(tmp_path / "folder", scheduler, **changes)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "again"), "--to", "diffusers"]) == 0
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    given, again = (DDPMPipeline.from_pretrained(path) for path in (folder, tmp_path / "again"))
    for part in ("unet", "scheduler"):
        ours, theirs = (
            {key: value for key, value in getattr(pipeline, part).config.items() if not key.startswith("_")}
            for pipeline in (again, given)
        )
        assert type(getattr(again, part)) is type(getattr(given, part))
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items()} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()
        }


@pytest.mark.parametrize("ema", ["{decay: 0.9}", "{kind: power, sigma_rel: [0.05, 0.1]}"])
def test_it_is_trained_further_with_a_fresh_optimizer(
    ema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shards = tmp_path / "run", indexed_shards(tmp_path / "shards", 12)
    assert main(["import", str(saved_folder(tmp_path / "folder")), str(run), f"ema={ema}"]) == 0
    before = diffpipe.load(run).networks["denoiser"].state_dict()
    words = ["train", str(run / "config.yaml"), "train.precision=fp32", "data.batch_size=4", "data.workers=0"]
    assert main(words) == 2
    assert "its config names no shards to train on; give data.train=PATH" in capsys.readouterr().err
    words += [f"data.train={shards}", "train.steps=2", "optimizer.warmup=0", "optimizer.lr=1e-5", "seed=4"]
    assert main(words) == 0
    assert "further, with a fresh optimizer" in capsys.readouterr().err
    trained = diffpipe.load(run, raw=True)
    assert trained.step == 2
    assert trained.config.optimizer.lr == 1e-5
    for net in (trained.networks["denoiser"], diffpipe.load(run).networks["denoiser"]):
        for name, tensor in net.state_dict().items():
            assert 0 < (tensor - before[name]).abs().max() < 4e-5
    assert main([*words[:-1], "seed=5", "train.steps=3"]) == 2  # a run like any other by now
    assert "seed was 4 and is 5" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [3, 4])
def test_classes_with_and_without_an_empty_label(classes: int, tmp_path: Path) -> None:
    folder = saved_folder(tmp_path / "folder", num_class_embeds=4)
    assert main(["import", str(folder), str(tmp_path / "run"), "--classes", str(classes)]) == 0
    run = diffpipe.load(tmp_path / "run")
    net = run.networks["denoiser"].double()
    x, t, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 5, 900]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, labels), unet2d(num_class_embeds=4).double()(x, t, labels).sample)
    guided = ["sample", str(tmp_path / "run"), str(tmp_path / "out"), "--n", "2", "--steps", "2", "--guidance", "2"]
    assert main(guided) == (0 if classes == 3 else 2)
    run = diffpipe.load(tmp_path / "run")
    (note,) = run.export(tmp_path / "again", "diffusers")
    assert "class_labels" in note
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    diffpipe.import_run(tmp_path / "again", tmp_path / "back")
    assert diffpipe.load(tmp_path / "back").config.stage == run.config.stage


def test_a_run_is_not_written_over_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path / "folder")
    diffpipe.import_run(folder, tmp_path / "run")
    with pytest.raises(UserError, match="a run with checkpoints already; give another directory"):
        diffpipe.import_run(folder, tmp_path / "run")
    with pytest.raises(UserError, match="no class embedding; leave out --classes"):
        diffpipe.import_run(folder, tmp_path / "other", classes=3)
