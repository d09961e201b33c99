"""Fifty wrong uses of the commands: each is one line that says what to do, exit status 2, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import CONFIG, SHARDS, TINY, diffpipe, succeeds

SMALL = ["data.train={shards}", "run.dir={out}", *TINY]
USES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "required: COMMAND"),
    "a mistyped command": (["trian", "{config}"], "did you mean train?"),
    "a command of another tool": (["fit", "{config}"], "no command is 'fit'"),
    "a URL as the output": (["sample", "{run}", "s3://bucket/out"], "an address of s3:// is no path on this machine"),
    "a URL as the run directory": (["train", "{config}", "run.dir=gs://bucket/run"], "run.dir: it is a URL"),
    "a mistyped option": (["sample", "{run}", "{out}", "--sampeler", "ddim"], "did you mean --sampler"),
    "a mistyped option of every command": (["status", "{home}", "--jason"], "did you mean --json"),
    "an option before its command": (["--steps", "5", "sample", "{run}", "{out}"], "no command is '5'"),
    "an option without its value": (["sample", "{run}", "{out}", "--n"], "expected one argument"),
    "a config key as an option": (["train", "{config}", "--train.steps=5"], "train.steps=5"),
    "a config key of a run": (["sample", "{run}", "{out}", "data.batch_size=5"], "takes no config keys"),
    "one word too many": (["export", "{run}", "{out}", "again"], "one argument too many"),
    "one word too few": (["eval", "{run}"], "required: --reference"),
    "a mistyped action": (["config", "shwo", "{config}"], "did you mean show?"),
    "an unknown shell": (["completion", "bsh"], "did you mean bash"),
    "a plug-in that is not there": (["--plugin", "absent_module", "status"], "plug-in absent_module"),
    "a base that is a path": (["status", "{home}", "--allow-base", "/local"], "/local"),
    "no such config": (["train", "absent.yaml"], "absent.yaml"),
    "a folder as a config": (["train", "{run}"], "run"),
    "a picture as a config": (["train", "{photos}/0.png"], "0.png"),
    "an unknown key": (["train", "{config}", *SMALL, "train.setps=3"], "did you mean train.steps?"),
    "an unknown section": (["train", "{config}", *SMALL, "trian.steps=3"], "trian"),
    "a key without its value": (["train", "{config}", *SMALL, "train.steps="], "train.steps"),
    "a word for a number": (["train", "{config}", *SMALL, "optimizer.lr=fast"], "'fast'"),
    "a negative number": (["train", "{config}", *SMALL, "train.steps=-1"], "train.steps"),
    "an unknown choice": (["train", "{config}", *SMALL, "train.precision=fp8"], "train.precision"),
    "an unknown stage": (["train", "{config}", *SMALL, "stage.kind=ddmp"], "stage"),
    "no such shards": (["train", "{config}", *SMALL, "data.train=absent"], "no such shards"),
    "photos as shards": (["train", "{config}", *SMALL, "data.train={photos}"], "diffpipe pack"),
    "labels that are not there": (["train", "{config}", *SMALL, "data.train={unlabelled}"], "data.labels=false"),
    "a resolution that cannot be halved": (["train", "{config}", *SMALL, "data.resolution=27"], "multiple of 2"),
    "a resume with another model": (["train", "{config}", *SMALL, "run.dir={run}", "seed=9"], "seed was 0 and is 9"),
    "a key that is none": (["config", "keys", "train.setps"], "no key begins with train.setps"),
    "no such run": (["sample", "absent", "{out}"], "no such directory"),
    "a file as a run": (["sample", "{run}/config.yaml", "{out}"], "give a run directory"),
    "photos as a run": (["export", "{photos}", "{out}"], "no checkpoint in it"),
    "no images to sample": (["sample", "{run}", "{out}", "--n", "0"], "--n 0"),
    "an unknown sampler": (["sample", "{run}", "{out}", "--sampler", "ddmi"], "ddmi"),
    "more steps than there are": (["sample", "{run}", "{out}", "--steps", "2000"], "1 to 1000"),
    "a class that is not there": (["sample", "{run}", "{out}", "--label", "10"], "0 to 9"),
    "no such reference": (["eval", "{run}", "--reference", "absent"], "there is nothing of this name"),
    "a mistyped metric": (["eval", "{run}", "--reference", "{shards}", "--metrics", "fids"], "'fids'"),
    "one image to score": (["eval", "{run}", "--reference", "{shards}", "--n", "1"], "at least 2"),
    "likelihoods of no shards": (["nll", "{run}", "absent"], "no such shards"),
    "a class-conditional run for anomalies": (
        ["anomaly", "{run}", "--normal", "{shards}", "--abnormal", "{shards}"],
        "stage.conditional=false",
    ),
    "nothing to compare": (["compare", "--reference", "{shards}", "--out", "{out}"], "give"),
    "a picture that is no PNG": (["interpolate", "{run}", "{out}.jpg", "--shards", "{shards}"], ".png"),
    "a file that is not compressed": (["decompress", "{photos}/0.png", "{run}", "{out}"], "0.png"),
    "nothing to pack": (["pack", "absent", "{out}"], "absent"),
    "an output that exists": (["pack", "{photos}", "{run}"], "exists"),
    "a quality of PNGs": (["pack", "{photos}", "{out}", "--quality", "90"], "--quality is for"),
    "a size that is none": (["pack", "{photos}", "{out}", "--resolution", "64px"], "64px is no size"),
    "nothing to index": (["index", "{photos}"], "photos"),
    "an unknown export": (["export", "{run}", "{out}", "--to", "onnx"], "'onnx'"),
    "nothing to import": (["import", "absent", "{out}"], "absent"),
    "no such folder of runs": (["status", "absent"], "no such folder"),
    "one checkpoint to keep": (["runs", "prune", "{home}", "--keep-last", "1"], "2 or more"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, its config, shards, shards without labels, and photos."""
    home = tmp_path_factory.mktemp("made")
    (home / "user").mkdir()
    words = ["train", CONFIG, f"run.dir={home}/run", f"data.train={home}/shards", *TINY, "train.steps=1"]
    shutil.copytree(SHARDS / "test", home / "shards")
    assert diffpipe(*words, env={"HOME": str(home / "user")}).returncode == 0
    (home / "photos").mkdir()
    for i in range(4):
        Image.new("L", (28, 28), 60 * i).save(home / "photos" / f"{i}.png")
    succeeds("pack", home / "photos", home / "unlabelled")
    return {name: home / name for name in ("run", "photos", "unlabelled", "shards")} | {"home": home, "config": CONFIG}


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder. A lock names the process that held it last."""
    return {
        str(path): path.read_bytes() if path.is_file() and path.name != ".lock" else b"" for path in folder.rglob("*")
    }


@pytest.mark.parametrize("use", USES)
def test_it_is_one_line_and_leaves_nothing_behind(tmp_path: Path, made: dict[str, Path], use: str) -> None:
    words, part = USES[use]
    before = files(made["home"])
    words = [word.format(out="out", **made) for word in words]
    result = diffpipe(*words, cwd=tmp_path, env={"HOME": str(made["home"] / "user")})
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("diffpipe")
    assert ": error: " in line
    assert part in line
    assert list(tmp_path.iterdir()) == []
    assert files(made["home"]) == before


@pytest.mark.parametrize("processes", [0, 2])
def test_json_is_one_document_of_all_processes(tmp_path: Path, made: dict[str, Path], processes: int) -> None:
    words = ["sample", made["run"], "out", "--n", 2, "--steps", 2, "--json"]
    result = diffpipe(*words, processes=processes, cwd=tmp_path)
    document = json.loads(result.stdout)
    assert (result.returncode, document["status"], document["n"], document["step"]) == (0, 0, 2, 1)
    assert document["files"] == [f"out/{name}" for name in ("000000.png", "000001.png", "grid.png", "samples.json")]
    result = diffpipe(*words, "--label", "10", processes=processes, cwd=tmp_path)
    document = json.loads(result.stdout)
    assert (document["command"], document["status"]) == ("sample", 2)
    assert result.stderr.splitlines() == [f"diffpipe sample: error: {document['error']}"]


def test_a_wrong_command_line_is_refused_once_by_two_processes(tmp_path: Path) -> None:
    result = diffpipe("sample", "runs/a", "out", "--sampeler", "ddim", processes=2, cwd=tmp_path)
    assert result.returncode == 1  # that of the launcher
    (line,) = result.stderr.splitlines()
    assert "did you mean --sampler" in line


@pytest.mark.parametrize("processes", [0, 2])
def test_debug_prints_the_traceback_before_the_line(tmp_path: Path, made: dict[str, Path], processes: int) -> None:
    result = diffpipe("sample", made["run"], "out", "--label", "10", "--debug", processes=processes, cwd=tmp_path)
    first, *_, last = result.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "image_sources.py" in result.stderr or "run.py" in result.stderr
    assert last.startswith("diffpipe sample: error: label 10")
