"""Folders of diffusers that are refused, each in one line, through the command: nothing of them is run or unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffpipe.__main__ import main
from diffpipe.experiment.interop.diffusers_folder import SCHEDULER, weights_path
from tests.support.diffusers_folders import saved_folder

WEIGHTS = weights_path("unet")


def edited(name: str, **keys: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return edit


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def with_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.bias"][0] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def in_parts(folder: Path) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text("{}")


def as_fifo(folder: Path) -> None:
    (folder / "unet/config.json").unlink()
    os.mkfifo(folder / "unet/config.json")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json: No such file"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: No such file"),
    "no scheduler": (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json: No"),
    "a pickle": (as_pickle, "diffusion_pytorch_model.bin: a pickle, which can run any code"),
    "several files": (in_parts, "the weights are in several files"),
    "a FIFO": (as_fifo, "unet/config.json: a FIFO, not a regular file"),
    "code": (edited("model_index.json", unet=["my_unet", "MyUNet"]), "its unet is ['my_unet', 'MyUNet'], code that"),
    "a pipeline of its own": (
        edited("model_index.json", _class_name=["pipeline", "Mine"]),
        "code that diffpipe does not",
    ),
    "auto_map": (edited("unet/config.json", auto_map={"AutoModel": "x.Y"}), "its auto_map names code"),
    "more parts": (edited("model_index.json", vqvae=["diffusers", "VQModel"]), "which is another architecture"),
    "another network": (edited("model_index.json", unet=["diffusers", "UNet1DModel"]), "which is another architecture"),
    "another model": (
        edited("unet/config.json", _class_name="DiTTransformer2DModel"),
        "a DiTTransformer2DModel; diffpipe",
    ),
    "another scheduler": (edited("scheduler/scheduler_config.json", _class_name="PNDMScheduler"), "a PNDMScheduler; "),
    "another scheduler in the index": (
        edited("model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"]),
        "model_index.json: its scheduler is a EulerDiscreteScheduler, and scheduler/scheduler_config.json is that of a",
    ),
    "control characters": (
        edited("scheduler/scheduler_config.json", _class_name="x\x1b[31m\ny"),
        "scheduler_config.json: a x\\x1b[31m y; ",
    ),
    "no betas": (edited(SCHEDULER, trained_betas=[]), "trained_betas has 0 betas"),
    "little noise": (edited(SCHEDULER, beta_end=2e-4), "of the image's variance in x_T"),
    "little noise in a table": (
        edited(SCHEDULER, trained_betas=torch.linspace(1e-4, 2e-4, 1000, dtype=torch.float64).tolist()),
        "of the image's variance in x_T",
    ),
    "wide heads": (edited("unet/config.json", attention_head_dim=10**9), "stage.network.head_channels"),
    "a long number": (with_text("unet/config.json", '{"sample_size": ' + "9" * 5000 + "}"), "a number has 5000 digits"),
    "half a pair": (with_text("unet/config.json", '{"\\ud800": 1}'), "half of a surrogate pair"),
    "NaN": (not_a_number, "conv_in.bias holds NaN or an infinity"),
    "not JSON": (lambda folder: (folder / "unet/config.json").write_text("{"), "unet/config.json: not JSON"),
    "a list": (lambda folder: (folder / "unet/config.json").write_text("[]"), "unet/config.json: not a mapping"),
    "wider": (edited("unet/config.json", block_out_channels=[16, 64]), "has shape"),
    "deeper": (edited("unet/config.json", layers_per_block=10**9), "layers_per_block is 1000000000"),
    "huge": (edited("unet/config.json", block_out_channels=[2**40, 2**41]), "≤ 65536"),
    "two outputs": (edited("unet/config.json", out_channels=2), "out_channels is 2, and"),
    "two channels": (
        edited("unet/config.json", in_channels=2, out_channels=2),
        "data.channels is 2; give 1 or 3",
    ),
    "classes": (edited("unet/config.json", num_class_embeds=4), "has 4 rows; give --classes 4, or --classes 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_folders_are_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, words = REFUSED[case]
    folder = saved_folder(tmp_path / "folder")
    edit(folder)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe import: error: {folder}")
    assert words in line
    assert not (tmp_path / "run").exists()
