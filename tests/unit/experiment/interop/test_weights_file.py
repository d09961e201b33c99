"""Files of weights from elsewhere: compared before they are read, pickles refused with the way to convert them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffpipe.errors import UserError
from diffpipe.experiment.interop.weights_file import WeightsFile, convert_state_dict


def test_the_tensors_in_float32_under_their_current_names(tmp_path: Path) -> None:
    tensors = {"a.old": torch.randn(2, 3).to(torch.bfloat16), "b": torch.randn(4, dtype=torch.float64)}
    save_file(tensors, tmp_path / "w.safetensors", {"k": "v"})
    file = WeightsFile(tmp_path / "w.safetensors", lambda name: name.replace("old", "new"))
    assert file.metadata == {"k": "v"}
    assert file.shapes == {"a.new": (2, 3), "b": (4,)}
    read = file.read()
    assert {name: t.dtype for name, t in read.items()} == {"a.new": torch.float32, "b": torch.float32}
    torch.testing.assert_close(read["a.new"], tensors["a.old"].float())


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"a": (2,), "b": (3,)}, "it lacks b, of the net$"),
        ({}, "it has a, not of the net$"),
        ({"a": (3,)}, r"a has shape \[2\], and that of the net has \[3\]"),
        (dict.fromkeys("avwxyz", (1,)), "it lacks v, w, x and 2 more, of the net$"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, expected: dict[str, tuple[int, ...]], words: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=words):
        WeightsFile(tmp_path / "w.safetensors").require(expected, "the net")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="No such file"):
        WeightsFile(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="not a safetensors file"):
        WeightsFile(path)
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, path)
    with pytest.raises(UserError, match="a holds I64, and weights are floats"):
        WeightsFile(path)
    os.mkfifo(tmp_path / "fifo.safetensors")
    with pytest.raises(UserError, match="a FIFO, not a regular file"):
        WeightsFile(tmp_path / "fifo.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a.old": torch.tensor([0, value], dtype=torch.float64), "b": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"w\.safetensors: a\.old holds NaN or an infinity"):
        WeightsFile(path, lambda name: name.replace("old", "new")).read()


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "renamed.safetensors", """it's "$(touch ü)`false`.pt"""])
def test_a_pickle_is_refused_and_the_command_converts_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, path)
    with pytest.raises(UserError, match=r"a pickle, which can run any code.*convert it: .*python -c") as error:
        WeightsFile(path)
    command = convert_state_dict(path)
    assert str(error.value).endswith(command)
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True)
    torch.testing.assert_close(load_file(path.with_suffix(".safetensors"))["a"], torch.arange(6.0).reshape(2, 3).T)
