"""The page of a run: it says what happened, needs no other file, stays small, and escapes what strangers wrote."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from diffpipe.config import dump_yaml
from diffpipe.metrics.protocol import Result, write
from diffpipe.report.run_page import run_page
from diffpipe.report.run_record import read_run
from tests.support.html_page import Page
from tests.support.report_runs import (
    START,
    finished_run,
    log_line,
    write_config,
    write_grid,
    write_lines,
    write_score,
    write_state,
)
from tests.support.stage_cases import CASES

EVIL = '</script><b>"evil"</b>'


def page_of(home: Path) -> tuple[str, Page]:
    text = run_page(read_run(home))
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return text, page


def test_the_page_of_a_finished_run_has_all_sections_and_loads_nothing(tmp_path: Path) -> None:
    text, page = page_of(finished_run(tmp_path / "run"))
    headings = [words.strip() for words in page.texts("h2")]
    assert headings == ["Samples", "Training", "Scores", "Timeline", "Data", "Config"]
    assert "http:" not in text
    assert "https:" not in text
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.seen}
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert len(page.all("img")) == 10
    for words in (
        "finished",
        "Steps 333 to 640, resumed",
        "killed or lost",
        "stopped by SIGTERM",
        "2 samples could not be read",
        "1 update left out",
        "train-001.tar: key9: truncated",
        "of about 10,000 images",
        "What differs from the default",
        "protocol B",
    ):
        assert words in page.text, words
    assert all(head["scope"] in {"col", "row"} for head in page.all("th"))


def test_scores_are_shown_as_eval_prints_them_with_its_remarks(tmp_path: Path) -> None:
    write_config(tmp_path, "data.train=shards/photos")
    about = {"metrics": {"fid": {"dim": 2048, "distance": "frechet"}, "kid": {}}}
    about |= {"generated": {"n": 1000, "step": 10, "images_seen": 160}}
    about |= {"reference": {"n": 2000, "shards": ["shards/photos/photos-000000.tar"]}}
    write(Result({"fid": 297.03, "kid": 0.26849}, {"kid": -0.00092}, about), tmp_path / "scores" / "a.json")
    write(Result({"nll": 3.6}, {}, {"generated": {"step": 20}}), tmp_path / "scores" / "later.json")
    _, page = page_of(tmp_path)
    assert "fid297.0" in " ".join(page.text.partition("Samples")[0].split())
    scores = page.text[page.text.index("Scores") : page.text.index("Timeline")]
    assert "kid ×10³ 268.5 (−0.92)" in " ".join(scores.split())
    assert "fid is of 1,000 images in 2,048 feature dimensions" in scores
    assert "the reference holds shards that the run was trained on" in scores
    assert not page.texts("h3")  # a plot of one point says nothing more


def test_a_run_that_has_just_begun_says_what_is_to_come(tmp_path: Path) -> None:
    write_config(tmp_path)
    _, page = page_of(tmp_path)
    for words in ("not started", "sample.every=1000", "No values yet", "eval.every=5000", "No job has trained"):
        assert words in page.text
    assert not page.all("img")
    assert f"diffpipe eval {tmp_path} --reference" in page.text


def test_a_run_that_draws_and_scores_says_when(tmp_path: Path) -> None:
    write_config(tmp_path, "sample.every=70", "eval.every=90")
    _, page = page_of(tmp_path)
    assert "sample.every=70 has one drawn every 70 steps" in page.text
    assert "eval.every=90 has them measured every 90 steps" in page.text


def test_a_run_of_a_stage_that_generates_nothing_says_so(tmp_path: Path) -> None:
    experiment = CASES["autoencoder"].experiment(f"run.dir={tmp_path}", "sample.every=0")
    (tmp_path / "config.yaml").write_text(dump_yaml(experiment))
    _, page = page_of(tmp_path)
    assert page.texts("h2")[0].strip() == "Reconstructions"
    assert "This stage generates no images." in page.text
    assert "this stage generates no images to score. eval.reconstruction=1000" in page.text
    assert "diffpipe sample" not in page.text
    assert "diffpipe eval" not in page.text


def test_a_run_of_a_million_steps_makes_a_small_page(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", (log_line(step) for step in range(50, 1_000_001, 50)))
    for step in range(0, 1_000_001, 10_000):
        write_grid(tmp_path, step)
    text, page = page_of(tmp_path)
    assert len(text) < 1_000_000
    assert len(page.all("img")) == 24
    assert "24 of 101 grids are shown" in page.text
    assert "The log has 20,000 lines. Each point is the mean of up to 50 of them" in page.text


def test_values_that_are_not_finite_are_marked_and_stay_out_of_the_numbers(tmp_path: Path) -> None:
    lines = [log_line(step, loss=math.nan, data_wait=math.inf) for step in (10, 20)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    text, page = page_of(tmp_path)
    assert "× marks 2 values that are not finite" in page.text
    assert "left out" not in page.text.partition("Scores")[0]
    points = json.loads(page.script("points"))
    assert points[0]["curves"][0]["y"] == [None, None]
    assert "NaN" not in text


@pytest.mark.parametrize("values", [(1e308, -1e308), (5e-324, 1e-322), (1.0, 1.0 + 2e-16), (1e99, 1e-99), (0.0, 1e40)])
def test_numbers_of_any_size_are_drawn(tmp_path: Path, values: tuple[float, float]) -> None:
    names = ["loss", "time", "epoch", "images", "last_step", "bad", "data_wait", "lr", "other"]
    lines = [log_line(2**40 * i, **dict.fromkeys(names, value)) for i, value in enumerate(values)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    write_state(tmp_path, 10**100)
    write_score(tmp_path, 10, values[0])
    write_score(tmp_path, 20, values[1])
    text, _ = page_of(tmp_path)
    assert "nan" not in text.partition("<svg")[2].lower()


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    home = tmp_path / "<b>run; $(rm x)"
    home.mkdir()
    (home / "config.yaml").write_text(json.dumps({"stage": {"kind": EVIL}, EVIL: EVIL}))
    write_lines(home / "metrics.jsonl", [log_line(10, **{EVIL: 1.0})])
    write_lines(
        home / "events.jsonl",
        [{"step": 0, "event": "start", "host": EVIL}, {"step": 10, "event": "fail", "error": EVIL}],
    )
    write_state(home, 10, bad_samples=[EVIL])
    protocol = {"generated": {"step": 10, "images_seen": 160, "sampler": {"kind": EVIL}, EVIL: EVIL}}
    write(Result({EVIL: 1.0}, {}, protocol), home / "scores" / "a.json")
    (home / "scores" / "<b>.json").write_text("")
    text, page = page_of(home)
    assert EVIL not in text
    assert f"diffpipe sample '{home}' OUT" in page.text
    assert page.text.count(EVIL) >= 8
    assert [attributes for attributes in page.all("b") if attributes] == []
    assert '"evil"' not in page.texts("b")
    assert len(page.all("script")) == 2


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "fail", "error": "UserError: the disk is full"}, ["failed", "UserError: the disk is full"]),
        ({"event": "stop", "signal": "SIGTERM"}, ["stopped by SIGTERM", "the same command resumes it"]),
        ({"event": "finish"}, ["finished"]),
        ({"event": "other"}, ["killed", "ended without a last word"]),
    ],
)
def test_the_end_of_the_last_job_is_the_state_of_the_run(
    tmp_path: Path, event: dict[str, str], words: list[str]
) -> None:
    write_config(tmp_path, "train.steps=10")
    write_lines(tmp_path / "metrics.jsonl", [log_line(10)])
    lines = [{"step": 0, "event": "start"}, {"step": 10, **event}]
    write_lines(tmp_path / "events.jsonl", [line for line in lines if line["event"] != "other"])
    _, page = page_of(tmp_path)
    header = page.text.partition("Samples")[0]
    assert all(word in header for word in words)


def test_a_run_that_trains_names_its_process(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_lines(tmp_path / "events.jsonl", [{"step": 0, "event": "start", "time": START}])
    hold = "import sys; from pathlib import Path; from diffpipe.files import open_locked; "
    hold += "open_locked(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, tmp_path / ".lock"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        (tmp_path / ".lock").write_text(f"process {job.pid} on node-1\n")
        _, page = page_of(tmp_path)
        job.communicate()
    assert f"process {job.pid} on node-1" in page.text.partition("Samples")[0]
    assert {"class": "status running"} in page.all("span")
