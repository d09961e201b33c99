"""Runs in one file: the same run again, and files that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffpipe
from diffpipe.__main__ import main


def test_a_single_file_is_the_run_again(tiny_run: Path, tmp_path: Path) -> None:
    file, back = tmp_path / "out" / "tiny.safetensors", tmp_path / "back"
    assert main(["export", str(tiny_run), str(file)]) == 0
    assert main(["import", str(file), str(back), "stage.sampler.steps=2"]) == 0
    was, is_ = diffpipe.load(tiny_run), diffpipe.load(back)
    assert (is_.step, is_.config.stage.sampler.model_dump()["steps"], is_.config.data.train) == (0, 2, [])
    assert torch.equal(was.sample(2, steps=2), is_.sample(2))
    assert is_.export(tmp_path / "again.safetensors") == []
    given, again = load_file(file), load_file(tmp_path / "again.safetensors")
    assert given.keys() == again.keys()
    assert all(torch.equal(given[name], again[name]) for name in given)


@pytest.mark.parametrize("name", ["w.pt", "w.pkl", "w.safetensors"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    assert main(["import", str(tmp_path / name), str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe import: error: {tmp_path / name}: a pickle, which can run any code")
    assert "convert it: " in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "its metadata has no config of diffpipe"),
        ({"diffpipe": "{}"}, "its metadata is not what diffpipe writes"),
        ({"diffpipe": '{"format": 99}'}, "written by another version of diffpipe (format 99"),
        ({"diffpipe": "["}, "its metadata is not what diffpipe writes"),
    ],
)
def test_other_files_are_refused(
    metadata: dict[str, str] | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata)
    assert main(["import", str(tmp_path / "w.safetensors"), str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
