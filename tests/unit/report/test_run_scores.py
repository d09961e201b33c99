"""The scores of a run: only those of one protocol are one curve, and a file that is no score is named."""

from __future__ import annotations

from pathlib import Path

from diffpipe.metrics.protocol import Result, write
from diffpipe.report.metrics_log import read_metrics
from diffpipe.report.run_scores import letter_of, read_scores, series_of
from tests.support.report_runs import log_line, write_lines, write_score


def test_scores_of_one_protocol_are_one_curve_over_the_images_seen(tmp_path: Path) -> None:
    for step, value in ((200, 3.0), (100, 5.0), (300, 2.0)):
        write_score(tmp_path, step, value)
    write_score(tmp_path, 300, 9.0, sampler="heun")
    (tmp_path / "scores" / "broken.json").write_text('{"scores": ')
    scores = read_scores(tmp_path / "scores")
    assert [(file.step, file.protocol) for file in scores.files] == [(100, "A"), (200, "A"), (300, "A"), (300, "B")]
    assert scores.unreadable == ["broken.json"]
    first, second = series_of(scores.files)
    assert [(point.images, point.value) for point in first.points] == [(1600, 5), (3200, 3), (4800, 2)]
    assert (first.metric, first.name, first.floor) == ("fd_efficientnet_lite0", "A", 120.0)
    assert second.curve().mean.tolist() == [9.0]
    assert first.curve().last == 2.0


def test_a_curve_shows_a_kernel_distance_as_people_read_it(tmp_path: Path) -> None:
    about = {"generated": {"step": 10, "images_seen": 160}}
    write(Result({"kid": 0.268}, {"kid": -0.001}, about), tmp_path / "scores" / "a.json")
    (series,) = series_of(read_scores(tmp_path / "scores").files)
    assert (series.metric, series.points[0].value, series.floor) == ("kid", 268, -1)


def test_other_images_or_another_reference_are_another_protocol(tmp_path: Path) -> None:
    write_score(tmp_path, 100, 1.0)
    write_score(tmp_path, 200, 1.0, n=50)
    write_score(tmp_path, 300, 1.0, weights="raw")
    assert [file.protocol for file in read_scores(tmp_path / "scores").files] == ["A", "B", "C"]


def test_a_likelihood_is_of_its_step_and_of_the_images_that_were_scored(tmp_path: Path) -> None:
    write_score(tmp_path, 100, 1.0)
    for step in (200, 300):
        model = {"step": step, "images_seen": 16 * step, "weights": "ema", "checkpoint": f"{step:064d}"}
        about = {"model": model, "reference": {"n": 50, "fingerprint": "f"}}
        write(Result({"nll": 3.5}, {}, about), tmp_path / "scores" / f"nll-step-{step:08d}-n50-a.json")
    files = read_scores(tmp_path / "scores").files
    assert [(file.step, file.images, file.protocol) for file in files] == [
        (100, 1600, "A"), (200, 3200, "B"), (300, 4800, "B")
    ]  # fmt: skip
    assert (files[-1].about["n"], files[-1].about["weights"], files[0].about["n"]) == (50, "ema", 100)


def test_a_score_whose_images_are_unknown_is_listed_but_not_drawn(tmp_path: Path) -> None:
    write_score(tmp_path, 100, 1.0, images_seen="<many>")
    scores = read_scores(tmp_path / "scores")
    assert [(file.step, file.images) for file in scores.files] == [(100, None)]
    assert series_of(scores.files) == []


def test_a_score_of_training_has_the_images_of_its_step_in_the_log(tmp_path: Path) -> None:
    for step in (50, 100):
        write(Result({"fid": 3.0}, {}, {"generated": {"n": 9, "step": step}}), tmp_path / "scores" / f"{step}.json")
    write_lines(tmp_path / "metrics.jsonl", [log_line(step) for step in (50, 75, 100, 125)])
    files = read_scores(tmp_path / "scores", read_metrics(tmp_path / "metrics.jsonl")).files
    assert [(file.step, file.images) for file in files] == [(50, 800), (100, 1600)]
    assert [len(series.points) for series in series_of(files)] == [2]
    (tmp_path / "metrics.jsonl").unlink()
    unlogged = read_scores(tmp_path / "scores", read_metrics(tmp_path / "metrics.jsonl")).files
    assert [file.images for file in unlogged] == [None, None]


def test_a_link_and_a_missing_folder_hold_no_scores(tmp_path: Path) -> None:
    write_score(tmp_path, 100, 1.0)
    (tmp_path / "link").symlink_to(tmp_path / "scores")
    assert read_scores(tmp_path / "link").files == []
    assert read_scores(tmp_path / "absent").files == []


def test_letters_go_on_after_z() -> None:
    assert [letter_of(i) for i in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]
