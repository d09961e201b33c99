"""A run with adapters, read back: frozen weights and adapters are merged, whichever weights are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import diffpipe
from diffpipe.__main__ import main
from diffpipe.train.lora import plain_name
from tests.support.checkpoint_tensors import consolidated
from tests.support.runs import TINY_WORDS, indexed_shards

CONFIG = Path(__file__).parents[3] / "configs" / "fashion_mnist" / "ddpm.yaml"


def tuned(tmp_path: Path, *words: str, steps: int = 2) -> Path:
    """A run of two steps with adapters, of a run of four steps."""
    images = indexed_shards(tmp_path / "images", 12)
    fixed = [*TINY_WORDS, "train.minutes=null", f"data.train={images}", "optimizer.warmup=0", "optimizer.lr=0.01"]
    fixed += ["data.batch_size=4", "stage.network.dropout=0"]
    assert main(["train", str(CONFIG), *fixed, f"run.dir={tmp_path / 'base'}", "train.steps=4"]) == 0
    own = [f"run.dir={tmp_path / 'run'}", f"run.init={tmp_path / 'base'}", "lora.rank=2", "lora.alpha=3"]
    assert main(["train", str(CONFIG), *fixed, *own, f"train.steps={steps}", *words]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("raw", [True, False])
def test_an_opened_run_has_the_frozen_weights_with_its_adapters_in_them(raw: bool, tmp_path: Path) -> None:
    run = tuned(tmp_path, "init.fresh=[denoiser.label]", "ema.decay=0.5")
    held, base = (
        consolidated(path / "checkpoints" / name)
        for path, name in ((run, "step-00000002"), (tmp_path / "base", "step-00000004"))
    )
    part = "net" if raw else "ema"
    opened = diffpipe.load(run, raw=raw)
    layers = set()
    for name, tensor in opened.networks["denoiser"].state_dict().items():
        layer = f"denoiser.{name.removesuffix('.weight')}"
        if f"net.{layer}.base_layer.weight" in held:
            layers.add(layer)
            a, b = (held[f"{part}.{layer}.lora_{x}.default.weight"].astype(np.float64) for x in "AB")
            assert b.any()
            expected = base[f"ema.{layer}.weight"] + 1.5 * b @ a
        elif name.startswith("label"):
            expected = held[f"{part}.denoiser.{name}"]
        else:
            expected = base[f"ema.denoiser.{name}"]
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    assert len(layers) > 8
    assert not any(name.startswith("ema.") and ".lora_" not in name and "label" not in name for name in held)


def test_the_frozen_weights_are_those_of_the_source_bit_for_bit(tmp_path: Path) -> None:
    run = tuned(tmp_path)
    base = consolidated(tmp_path / "base" / "checkpoints" / "step-00000004")
    for name, tensor in consolidated(run / "checkpoints" / "step-00000002").items():
        if name.startswith("net.") and ".lora_" not in name:
            assert tensor.tobytes() == base[plain_name(name).replace("net.", "ema.", 1)].tobytes(), name


def test_another_run_starts_from_the_merged_weights(tmp_path: Path) -> None:
    run = tuned(tmp_path, "ema={kind: power, sigma_rel: [0.1, 0.2], snapshot_every: 1}")
    merged = diffpipe.load(run)
    shorter = diffpipe.load(run, ema=0.11).networks["denoiser"].state_dict()
    words = [*TINY_WORDS, "train.minutes=null", f"data.train={tmp_path / 'images'}", "data.batch_size=4"]
    words += ["train.steps=1", "optimizer.lr=1e-30", f"run.dir={tmp_path / 'next'}", f"run.init={run}"]
    assert main(["train", str(CONFIG), *words, "stage.network.dropout=0.1"]) == 0
    after = diffpipe.load(tmp_path / "next", raw=True).networks["denoiser"].state_dict()
    for name, tensor in merged.networks["denoiser"].state_dict().items():
        assert torch.equal(after[name], tensor), name
    assert any(not torch.equal(after[name], tensor) for name, tensor in shorter.items())
