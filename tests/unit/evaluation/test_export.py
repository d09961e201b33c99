"""Exported weights: the networks' own tensors, and a folder that cannot be written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffpipe.errors import UserError
from diffpipe.evaluation.export import export_safetensors
from tests.support.runs import Noise, opened_run


def test_each_network_is_a_file_of_its_tensors(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    run = replace(opened_run(Noise(), tmp_path / "run"), nets={"denoiser": net})
    export_safetensors(run, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "denoiser.safetensors"]
    torch.testing.assert_close(load_file(tmp_path / "out" / "denoiser.safetensors"), dict(net.state_dict()))


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="give a folder that can be written"):
        export_safetensors(opened_run(Noise(), tmp_path / "run"), tmp_path / "out")
