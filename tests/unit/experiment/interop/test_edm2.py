"""EDM2's state dicts as our edm2 network: the function of an independent forward pass, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffpipe
from diffpipe.__main__ import main
from tests.support.edm2_unet import Architecture, EDM2Net
from tests.support.randomized import normal

CASES = {
    "classes": Architecture(classes=4),
    "three levels": Architecture(mult=(1, 2, 3), blocks=2, attention=(4, 2)),
    "one level": Architecture(mult=(1,), attention=(), channels=1),
}
T = torch.tensor([-1.5, 0.0, 1.0], dtype=torch.float64)


def state_dict(path: Path, architecture: Architecture, *, learned: bool = True) -> EDM2Net:
    """A file of a state dict; the function that it belongs to."""
    net = EDM2Net(architecture)
    net(normal(3, architecture.channels, 8, 8).double(), T, torch.tensor([0, 1, 2]))
    if learned:
        net.log_variance(T)
    save_file({name: tensor.float() for name, tensor in net.weights.items()}, path)
    return net


@pytest.mark.parametrize("case", CASES)
def test_the_imported_network_is_the_function_of_the_paper(case: str, tmp_path: Path) -> None:
    architecture, path = CASES[case], tmp_path / "edm2.safetensors"
    theirs = state_dict(path, architecture)
    assert main(["import", str(path), str(tmp_path / "run"), "stage.network.head_channels=8"]) == 0
    run = diffpipe.load(tmp_path / "run", device="cpu")
    x, labels = (
        normal(3, architecture.channels, 8, 8).double(),
        torch.tensor([0, 3, 4]) if architecture.classes else None,
    )
    with torch.no_grad():
        expected = theirs(x, T, labels)
        torch.testing.assert_close(run.networks["denoiser"].double()(x, T, labels), expected, rtol=1e-5, atol=1e-5)
        expected = theirs.log_variance(T).float()
        torch.testing.assert_close(run.networks["log_variance"](T), expected, rtol=1e-5, atol=1e-5)
    assert run.config.stage.kind == "ddpm"
    assert (run.config.stage.prediction, run.config.stage.schedule.kind) == ("edm", "edm")


def test_without_the_weighting_or_with_another_one_the_network_is_the_same(tmp_path: Path) -> None:
    path, words = tmp_path / "edm2.safetensors", ["stage.network.head_channels=8"]
    state_dict(path, CASES["one level"])
    diffpipe.import_run(path, tmp_path / "other", [*words, "stage.weighting.kind=edm"])
    state_dict(path, CASES["one level"], learned=False)
    diffpipe.import_run(path, tmp_path / "without", words)
    one, other = (diffpipe.load(tmp_path / name, device="cpu").networks for name in ("other", "without"))
    assert one.keys() == other.keys() == {"denoiser"}
    tensors = other["denoiser"].state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in one["denoiser"].state_dict().items())


def less(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no block": (less("unet.enc.8x8_block0.conv_res0.weight"), "it lacks unet.enc.8x8_block0 or unet.out_conv"),
    "a missing tensor": (less("unet.dec.4x4_in1.emb_gain"), "it lacks unet.dec.4x4_in1.emb_gain, of the edm2 network"),
    "another tensor": (lambda w: w.update({"unet.x": torch.zeros(1)}), "it has unet.x, not of the edm2 network"),
    "latents": (
        lambda w: w.update({"unet.enc.8x8_conv.weight": torch.zeros(16, 5, 3, 3)}),
        "data.channels is 4; give 1 or 3",
    ),
    "no axes": (lambda w: w.update({"unet.out_conv.weight": torch.zeros(())}), "unet.out_conv.weight has shape []"),
    "no multiple": (
        lambda w: w.update({"unet.enc.8x8_conv.weight": torch.zeros(12, 4, 3, 3)}),
        "its levels are [16, 32] wide",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_state_dicts_are_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, words = REFUSED[case]
    path = tmp_path / "edm2.safetensors"
    weights = {name: tensor.float() for name, tensor in state_dict(path, Architecture()).weights.items()}
    edit(weights)
    save_file(weights, path)
    assert main(["import", str(path), str(tmp_path / "run"), "stage.network.head_channels=8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe import: error: {path}: ")
    assert words in line
    assert not (tmp_path / "run").exists()
