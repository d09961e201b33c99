"""Adapters in diffusers: loaded into the model that they were trained on, they compute what the run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DiTTransformer2DModel, UNet2DModel
from diffusers.loaders import PeftAdapterMixin
from peft import PeftModel
from safetensors.torch import load_file

import diffpipe
from diffpipe.__main__ import main
from tests.support.diffusers_folders import dit_transformer, saved_folder
from tests.support.runs import TINY_WORDS, indexed_shards

CONFIG = Path(__file__).parents[3] / "configs" / "fashion_mnist" / "ddpm.yaml"
UNET = "stage.network={channels: 16, channel_mult: [1, 2], blocks: 1, attention: [4], groups: 4, head_channels: 8, "
UNET += "frequency_shift: 0, cos_first: true, norm_eps: 1e-5, downsample_padding: both, dropout: 0}"
DIT = "stage.network={kind: dit, patch: 2, width: 16, depth: 2, heads: 2, mlp_norm_eps: 1e-5}"


class LoRAUNet(UNet2DModel, PeftAdapterMixin):
    """diffusers gives load_lora_adapter to a model that has its mixin. UNet2DModel alone has none."""


def folder_of_dit(folder: Path) -> Path:
    """A folder of diffusers with a DiTTransformer2DModel on grey pixels, as diffpipe exports it."""
    run = folder.parent / "dit"
    words = ["train", str(CONFIG), *TINY_WORDS, "train.minutes=null", "data.batch_size=4", "train.steps=1", DIT]
    words += ["stage.conditional=false", "data.labels=false", f"run.dir={run}"]
    assert main(words) == 0
    assert main(["export", str(run), str(folder), "--to", "diffusers"]) == 0
    model: Any = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    values = dit_transformer(in_channels=1, out_channels=1, num_embeds_ada_norm=1).state_dict()
    values = {name: torch.zeros_like(t) if "embedding_table" in name else t for name, t in values.items()}
    model.load_state_dict(values)
    model.save_pretrained(folder / "transformer")
    return folder


def tuned(tmp_path: Path, folder: Path, network: str, *words: str) -> Path:
    """A run of two steps with adapters of all linear layers."""
    images = indexed_shards(tmp_path / "images", 12)
    fixed = [*TINY_WORDS, "train.minutes=null", f"data.train={images}", "optimizer.warmup=0", "optimizer.lr=0.05"]
    fixed += ["data.batch_size=4", network, "stage.conditional=false", "data.labels=false", "train.steps=2"]
    run = tmp_path / "run"
    own = [f"run.dir={run}", f"run.init={folder}", "lora.rank=2", "lora.alpha=4"]
    assert main(["train", str(CONFIG), *fixed, *own, *words]) == 0
    return run


def outputs(model: Any, **more: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = model(x, torch.tensor([0, 5, 900]), **more)
    return getattr(y, "sample", y)


def test_the_adapter_of_a_unet_loads_into_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved_folder(tmp_path / "folder")
    run, out = tuned(tmp_path, folder, UNET), tmp_path / "adapter"
    assert main(["export", str(run), str(out), "--to", "diffusers"]) == 0
    assert f"an adapter of the unet of {folder}" in capsys.readouterr().err
    ours = outputs(diffpipe.load(run, precision="fp32").networks["denoiser"])
    base = UNet2DModel.from_pretrained(folder, subfolder="unet")
    assert (outputs(base) - ours).abs().max() > 0.01
    loaded: Any = PeftModel.from_pretrained(base, out)
    torch.testing.assert_close(outputs(loaded), ours, rtol=1e-5, atol=1e-5)
    mixed: Any = LoRAUNet.from_pretrained(folder, subfolder="unet")
    mixed.load_lora_adapter(out, prefix="base_model.model", weight_name="adapter_model.safetensors")
    torch.testing.assert_close(outputs(mixed), ours, rtol=1e-5, atol=1e-5)
    names = load_file(out / "adapter_model.safetensors").keys()
    layers = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 2 * len(layers)
    assert {layer.rpartition(".")[2] for layer in layers} == {"to_q", "to_k", "to_v", "0", "time_emb_proj"}


def test_the_adapter_of_a_transformer_loads_into_diffusers(tmp_path: Path) -> None:
    folder = folder_of_dit(tmp_path / "folder")
    run, out = tuned(tmp_path, folder, DIT), tmp_path / "adapter"
    assert main(["export", str(run), str(out), "--to", "diffusers", "--raw"]) == 0
    ours = outputs(diffpipe.load(run, raw=True, precision="fp32").networks["denoiser"])
    base: Any = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    labels = torch.zeros(3, dtype=torch.long)
    assert (outputs(base.eval(), class_labels=labels) - ours).abs().max() > 0.01
    loaded: Any = PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(outputs(loaded, class_labels=labels), ours, rtol=1e-5, atol=1e-5)


def test_merged_weights_are_a_whole_folder_or_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved_folder(tmp_path / "folder")
    run, out = tuned(tmp_path, folder, UNET, "init.fresh=[denoiser.out]"), tmp_path / "merged"
    assert main(["export", str(run), str(out), "--to", "diffusers"]) == 2
    assert "has trained denoiser.out whole (init.fresh), which an adapter cannot hold" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--to", "diffusers", "--merge"]) == 0
    ours = outputs(diffpipe.load(run, precision="fp32").networks["denoiser"])
    pipeline: Any = DDPMPipeline.from_pretrained(out)
    torch.testing.assert_close(outputs(pipeline.unet), ours, rtol=1e-5, atol=1e-5)
    file = tmp_path / "merged.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    assert main(["import", str(file), str(tmp_path / "back")]) == 0
    assert torch.equal(outputs(diffpipe.load(tmp_path / "back", precision="fp32").networks["denoiser"]), ours)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "x"), "--merge"]) == 2
    assert "--merge is for `--to diffusers` and a run with lora" in capsys.readouterr().err
