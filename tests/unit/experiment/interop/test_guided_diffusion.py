"""guided-diffusion's state dicts as our ADM network: the function of an independent forward pass, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffpipe
from diffpipe.__main__ import main
from tests.support.guided_diffusion import Architecture, write_state_dict
from tests.support.randomized import normal

CASES: dict[str, tuple[Architecture, list[str]]] = {
    "legacy order, classes": (Architecture(classes=4), []),
    "new order": (Architecture(new_order=True, blocks=2, attention=(8, 2), mult=(1, 2, 3)), ["--attention-order=new"]),
    "a number of heads": (Architecture(head_channels=None, heads=4, outputs=3), ["stage.network.heads=4"]),
    "one level": (Architecture(mult=(1,), attention=(), head_channels=32), ["stage.network.head_channels=32"]),
}
T = torch.tensor([0, 17, 999])


@pytest.mark.parametrize("case", CASES)
def test_the_imported_network_is_the_function_of_the_paper(case: str, tmp_path: Path) -> None:
    architecture, words = CASES[case]
    theirs = write_state_dict(tmp_path / "adm.safetensors", architecture)
    words = ["stage.network.head_channels=16", *words, "stage.schedule.kind=cosine"]
    words = ["import", str(tmp_path / "adm.safetensors"), str(tmp_path / "run"), "--resolution", "8", *words]
    assert main(words) == 0
    run = diffpipe.load(tmp_path / "run", device="cpu")
    x, labels = normal(3, 3, 8, 8).double(), torch.tensor([0, 3, 1]) if architecture.classes else None
    with torch.no_grad():
        ours = run.networks["denoiser"].double()(x, T, labels)
        torch.testing.assert_close(ours, theirs(x, T, labels), rtol=1e-5, atol=1e-5)
    tree = run.config.model_dump()["stage"]
    assert (tree["learned_variance"], tree["conditional"]) == (architecture.outputs == 6, architecture.classes > 0)


def less(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def shaped(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "convolutions between levels": (shaped("input_blocks.2.0.op.weight", 32, 32, 3, 3), "(resblock_updown)"),
    "shifts alone": (shaped("input_blocks.1.0.emb_layers.1.weight", 32, 128), "(use_scale_shift_norm=False)"),
    "a narrow first layer": (shaped("input_blocks.0.0.weight", 16, 3, 3, 3), "that number itself in the first layer"),
    "a missing tensor": (less("middle_block.1.qkv.bias"), "it lacks middle_block.1.qkv.bias, of the adm network"),
    "a missing level": (less("input_blocks.3.0.out_layers.3.weight"), "it lacks input_blocks.3.0.out_layers.3.weight"),
    "another tensor": (shaped("more.weight", 2), "it has more.weight, not of the adm network"),
    "too few axes": (shaped("time_embed.0.weight", 4), "time_embed.0.weight has shape [4], and 2 axes are needed"),
    "an empty one": (shaped("out.2.weight", 0, 32, 3, 3), "out.2.weight has shape [0, 32, 3, 3], and 4 axes are"),
    "five outputs": (shaped("out.2.weight", 5, 32, 3, 3), "its output has 5 channels, for 3 of images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_state_dicts_are_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, words = REFUSED[case]
    path = tmp_path / "adm.safetensors"
    weights = {name: tensor.float() for name, tensor in write_state_dict(path).weights.items()}
    edit(weights)
    save_file(weights, path)
    assert main(["import", str(path), str(tmp_path / "run"), "--resolution", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe import: error: {path}: ")
    assert words in line
    assert not (tmp_path / "run").exists()
