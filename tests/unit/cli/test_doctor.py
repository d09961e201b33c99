"""`diffpipe doctor`: each planted trouble has its finding and its remedy, and a healthy set-up has none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffpipe.__main__ import main
from diffpipe.metrics import features
from tests.support.commands import CONFIG
from tests.support.doctor_pairs import PAIRS, Pair
from tests.support.doctor_troubles import TROUBLES, WARMUP, Site, Trouble
from tests.support.runs import TINY_WORDS, indexed_shards

HOLD = """
import sys
from pathlib import Path
from diffpipe.train.distributed import Communicator
from diffpipe.train.run_lock import locked
with locked(Path(sys.argv[1]), Communicator()):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and a run that was trained on them for two steps."""
    home = tmp_path_factory.mktemp("doctor")
    indexed_shards(home / "images", 6, 6)
    words = [f"data.train={home / 'images'}", f"run.dir={home / 'run'}", "data.batch_size=4", "train.steps=2", WARMUP]
    assert main(["train", str(CONFIG), *TINY_WORDS, "checkpoint.every=1", *words]) == 0
    return home


@pytest.fixture
def site(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    shutil.copytree(trained, tmp_path / "site")
    for name in (
        "OMP_NUM_THREADS",
        "CUDA_LAUNCH_BLOCKING",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        features.INCEPTION_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Site(tmp_path / "site" / "images", tmp_path / "site" / "run", monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["doctor", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_each_trouble_is_found_with_its_remedy_and_in_the_words_of_train(
    trouble: Trouble, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble.plant(site)
    words = site.words(*trouble.words)
    before = contents(site.run.parent)
    status, report = doctor(capsys, *words)
    assert status == (1 if trouble.level == "error" else 0), report
    assert contents(site.run.parent) == before
    levels = {"error": 2, "warning": 1, "note": 0}
    assert max(levels[finding["level"]] for finding in report["findings"]) == levels[trouble.level], report
    found = [f for f in report["findings"] if f["level"] == trouble.level and re.search(trouble.finding, f["problem"])]
    assert len(found) == 1, report
    assert trouble.remedy in found[0]["remedy"]
    if trouble.refused:
        assert main(["train", *words]) == 2
        refusal = capsys.readouterr().err.strip().removeprefix("diffpipe train: error: ")
        assert found[0]["problem"] in refusal
        assert refusal.endswith(found[0]["remedy"])


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_independent_troubles_are_found_in_one_run(pair: Pair, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pair.plant(site)
    _, report = doctor(capsys, *site.words(*pair.words))
    for finding in pair.findings:
        assert [f for f in report["findings"] if re.search(finding, f["problem"])], report


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
def test_a_run_that_another_process_trains_is_an_error_and_a_lock_that_it_left_is_none(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, site.run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        status, report = doctor(capsys, *site.words())
        holder.kill()
    assert status == 1
    (finding,) = report["findings"]
    assert finding["problem"].startswith(f"another job trains in {site.run} (process {holder.pid} on")
    assert finding["remedy"].startswith("wait for it or stop it")
    assert (site.run / ".lock").read_text() != ""
    assert doctor(capsys, *site.words())[1]["findings"] == []


@pytest.mark.parametrize("words", [(), ("--world=2",), ("run.dir=runs/doctor_has_none", "data.workers=2")])
def test_nothing_is_found_on_a_healthy_set_up(
    site: Site, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    before = contents(site.run.parent)
    assert main(["doctor", *site.words(*words)]) == 0
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "nothing is wrong"
    subjects = [line.partition(": ")[0] for line in lines]
    step = [] if "--world=2" in words else ["step"]
    always = ["libraries", "run directory", "processes", "data", "device", "resume", "memory", "disk"]
    assert subjects == [*always, *step]
    assert contents(site.run.parent) == before
    assert not Path("runs/doctor_has_none").exists()
