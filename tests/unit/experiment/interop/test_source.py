"""The options of an import, each for the source that does not tell it, and pickles, which are refused."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diffpipe
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from tests.support.diffusers_folders import saved_folder
from tests.support.guided_diffusion import write_state_dict

OPTIONS = {"classes": 3, "codec": "x", "resolution": 8, "attention_order": "new"}


def refused(source: Path, run: Path, option: str) -> str:
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} has no effect on ") as error:
        diffpipe.import_run(source, run, **{option: OPTIONS[option]})
    return str(error.value)


def test_an_option_that_the_source_tells_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    folder, run = saved_folder(tmp_path / "folder"), tmp_path / "run"
    for option in ("resolution", "attention_order"):
        assert "a diffusers folder, which names its own" in refused(folder, run, option)
    write_state_dict(tmp_path / "adm.safetensors")
    for option in ("classes", "codec"):
        assert "a state dict of guided-diffusion" in refused(tmp_path / "adm.safetensors", run, option)
    diffpipe.load(tiny_run).export(tmp_path / "tiny.safetensors")
    for option in ("classes", "resolution", "attention_order"):
        assert "a file of `diffpipe export`" in refused(tmp_path / "tiny.safetensors", run, option)
    assert not run.exists()


def test_a_state_dict_takes_a_resolution_and_heads_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "adm.safetensors"
    write_state_dict(path)
    with pytest.raises(UserError, match="no shape tells the size of its images; give --resolution N"):
        diffpipe.import_run(path, tmp_path / "run")
    with pytest.raises(UserError, match="head_channels 48 does not divide the width 64"):
        diffpipe.import_run(path, tmp_path / "run", ["stage.network.head_channels=48"], resolution=8)
    with pytest.raises(UserError, match=r"stage\.network has other blocks than its shapes tell"):
        diffpipe.import_run(path, tmp_path / "run", ["stage.network.blocks=3"], resolution=8)


def test_a_pickle_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, safe = tmp_path / "adm.pt", tmp_path / "adm.safetensors"
    write_state_dict(safe)
    torch.save(load_file(safe), path)
    safe.unlink()
    assert main(["import", str(path), str(tmp_path / "run"), "--resolution", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    before, command = line.split("convert it: ")
    assert "adm.pt: a pickle, which can run any code when it is read" in before
    program, option, code = shlex.split(command)
    assert (program, option) == ("python", "-c")
    assert "weights_only=True" in code
    exec(compile(code, "command", "exec"), {})
    diffpipe.import_run(safe, tmp_path / "run", resolution=8)
    path.write_bytes(pickle.dumps({}, protocol=2))
    assert main(["import", str(path), str(tmp_path / "other")]) == 2
    assert "a pickle" in capsys.readouterr().err
