"""Every way in which a resumed training can be another one is found, and rounding is not taken for one."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.verify import resume, subprocess_jobs
from diffpipe.verify.checkpoint_diff import (
    Deviation,
    Record,
    deviations,
    different_bits,
    different_samples,
    read_seen,
    read_tensors,
    trained_again,
)
from diffpipe.verify.resume_plan import Plan
from diffpipe.verify.verdict import Kill, Trained, Verdict, bits, distance, samples
from tests.support.commands import CONFIG
from tests.support.run_states import run_state

STEPS, BATCH = 6, 4


def attempt(first: int, last: int, world: int) -> list[Record]:
    """Steps first … last − 1 as so many ranks record them: rank r has every world-th position."""
    steps = [range(step * BATCH, (step + 1) * BATCH) for step in range(first, last)]
    shares = [(step, batch[rank::world]) for rank in range(world) for step, batch in enumerate(steps, first)]
    return [Record(step, [*share], [f"image{position}" for position in share]) for step, share in shares]


STRAIGHT = attempt(0, STEPS, 1)


def complaints(*attempts: list[Record]) -> list[str]:
    return different_samples(STRAIGHT, attempts, STEPS, BATCH)


def changed(records: list[Record], step: int, **by: list[object]) -> list[Record]:
    """The first record of the step with other positions or keys."""
    i = next(i for i, record in enumerate(records) if record.step == step)
    return [*records[:i], records[i]._replace(**by), *records[i + 1 :]]


def test_the_same_samples_at_other_world_sizes_are_the_same() -> None:
    pieces = [attempt(0, 3, 1), attempt(2, 5, 2), attempt(4, STEPS, 4)]
    assert complaints(*pieces) == []
    assert trained_again(pieces) == 2
    # A kill may come between two ranks: the second has not recorded what the first has.
    assert complaints(attempt(0, 3, 2)[:-1], attempt(2, STEPS, 1)) == []


def test_a_swapped_key_is_found() -> None:
    swapped = changed(attempt(2, STEPS, 1), 3, keys=["image13", "image12", "image14", "image15"])
    found = complaints(attempt(0, 3, 1), swapped)
    assert found[0] == "step 3 of attempt 2 has image13 at position 12, and the straight run has image12"
    assert len(found) == 2


def test_a_lost_step_is_found() -> None:
    assert complaints(attempt(0, 3, 1), attempt(4, STEPS, 1)) == ["step 3 lacks 4 positions, 12 the first"]


def test_a_rank_that_lost_its_share_is_found_though_a_killed_attempt_had_it() -> None:
    lost = [record for record in attempt(2, STEPS, 2) if (record.step, record.positions[0]) != (2, 9)]
    assert complaints(attempt(0, 4, 1), lost) == ["step 2 lacks 2 positions, 9 the first"]


def test_a_step_trained_again_with_other_samples_is_found() -> None:
    other = changed(attempt(2, STEPS, 1), 2, positions=[*range(12, 16)], keys=[f"image{i}" for i in range(12, 16)])
    found = complaints(attempt(0, 3, 1), other)
    assert found[0] == "step 2 of attempt 2 has image12 at position 12, and the straight run has no such position"
    assert "step 2 lacks 4 positions, 8 the first" in found
    # In an attempt that was killed, too, and whose step another has trained since.
    assert complaints(other, attempt(0, STEPS, 1)) != []


def test_a_position_on_two_ranks_is_found() -> None:
    twice = changed(attempt(0, STEPS, 2), 1, positions=[4, 5], keys=["image4", "image5"])
    assert "step 1 of attempt 1 has position 5 twice" in complaints(twice)


def test_a_straight_run_that_is_not_the_stream_is_found() -> None:
    gap = [record for record in STRAIGHT if record.step != 4]
    assert different_samples(gap, [gap], STEPS, BATCH) == ["step 4 of the straight run lacks 4 positions, 16 the first"]


def test_an_attempt_that_began_elsewhere_than_the_newest_checkpoint_is_found() -> None:
    nothing = Checkpoint(Path(), run_state(0), "")
    straight = Trained("straight-1", (1,), (), [STRAIGHT], nothing, 0.1)
    pieces = [attempt(0, 5, 1), attempt(2, STEPS, 2)]
    for saved, complaint in ((2, None), (4, "began in step 2, and the newest checkpoint was of step 4")):
        elastic = Trained("elastic", (1, 2), (Kill(1, 4, 0.5, 4, saved, 2),), pieces, nothing, 0.1)
        found = samples(straight, [elastic], STEPS, BATCH).complaint
        assert found is None if complaint is None else complaint in str(found)


def test_seen_is_read_from_all_ranks_without_the_line_that_a_kill_has_cut(tmp_path: Path) -> None:
    for rank in range(2):
        lines = [record._asdict() for record in attempt(0, 2, 2)[2 * rank : 2 * rank + 2]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"rank-{rank:05d}.jsonl").write_text(text + '{"step": 2, "positi')
    assert read_seen(tmp_path) == attempt(0, 2, 2)


def state(seed: int = 0, noise: float = 0.0) -> dict[str, Tensor]:
    """A small state, and the same with relative noise on it. The bias has no gradient but rounding errors."""
    draw, other = (torch.Generator().manual_seed(number) for number in (seed, seed + 1000))
    weight, bias = torch.randn(8, 8, generator=draw), torch.zeros(8)
    tensors = {"net.unet.w": weight, "net.unet.b": bias, "ema.unet.w": weight / 2, "ema.unet.b": bias.clone()}
    tensors |= {"optimizer.unet.w.exp_avg": torch.randn(8, 8, generator=draw) * 1e-3}
    tensors |= {"optimizer.unet.b.exp_avg": torch.randn(8, generator=other if noise else draw) * 1e-10}
    tensors |= {"optimizer.unet.w.step": torch.tensor(24.0), "optimizer.unet.b.step": torch.tensor(24.0)}
    return {name: t * (1 + noise * torch.randn(t.shape, generator=other)) for name, t in tensors.items()}


def judged(ours: dict[str, Tensor], yardstick: float = 1e-6) -> dict[str, bool]:
    """Which parts pass, against a straight run and another that differs from it by noise."""
    apart, between = deviations(ours, state()), deviations(state(noise=yardstick), state())
    checks = [distance(part, apart[part], between[part], "worlds 1 and 2", "fp32") for part in apart]
    return {check.name: check.complaint is None for check in checks}


def test_rounding_is_within_the_yardstick_even_where_there_is_nothing_but_rounding() -> None:
    assert judged(state(noise=2e-6)) == {"weights": True, "averages": True, "optimizer state": True}
    assert judged(state()) == {"weights": True, "averages": True, "optimizer state": True}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("net.unet.w", "weights"),
        ("net.unet.b", "weights"),
        ("ema.unet.w", "averages"),
        ("optimizer.unet.w.exp_avg", "optimizer state"),
        ("optimizer.unet.w.step", "optimizer state"),
    ],
)
def test_one_changed_value_is_beyond_rounding(name: str, part: str) -> None:
    ours = state(noise=1e-6)
    ours[name].view(-1)[0] += 1e-3 * (1e-3 if "exp_avg" in name else 1) * (1000 if "step" in name else 1)
    assert [each for each, passed in judged(ours).items() if not passed] == [part]
    assert deviations(ours, state())[part].tensor == name


def test_what_is_lost_of_another_shape_or_not_finite_is_infinitely_far() -> None:
    for value in (None, torch.zeros(7), torch.full((8,), torch.nan)):
        ours = state() | ({} if value is None else {"net.unet.b": value})
        if value is None:
            del ours["net.unet.b"]
        assert deviations(ours, state())["weights"] == Deviation(float("inf"), "net.unet.b")
        assert deviations(state(), ours)["weights"].value == float("inf")
        assert not judged(ours)["weights"]
    far = deviations(ours, state())["weights"]
    check = distance("weights", far, Deviation(1e-7, ""), "worlds 1 and 2", "fp32")
    assert json.loads(json.dumps(check.figures, allow_nan=False))["apart"] is None


def test_a_yardstick_beyond_rounding_is_no_excuse() -> None:
    check = distance("weights", Deviation(0.05, "net.unet.w"), Deviation(0.04, "net.unet.w"), "worlds 1 and 2", "fp32")
    assert "worlds 1 and 2 without a kill are 4.0e-02 apart in net.unet.w" in str(check.complaint)
    nan = distance("weights", Deviation(0.0, ""), Deviation(float("nan"), ""), "worlds 1 and 2", "fp32")
    assert nan.complaint is not None


def test_every_bit_counts() -> None:
    assert different_bits(state(), state()) == []
    one = state()
    one["net.unet.w"][0, 0] = torch.nextafter(one["net.unet.w"][0, 0], torch.tensor(9.0))
    assert different_bits(one, state()) == ["net.unet.w"]
    assert different_bits({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)}) == ["a"]
    assert different_bits({"a": torch.tensor(torch.nan)}, {"a": torch.tensor(torch.nan)}) == []
    assert different_bits({"a": torch.zeros(1)}, {"a": torch.zeros(1, dtype=torch.int32)}) == ["a"]
    assert different_bits({"a": torch.zeros(1)}, {"b": torch.zeros(1)}) == ["a", "b"]


def test_a_tensor_in_several_shards_is_read_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    for i, (offset, rows) in enumerate(((0, whole[:1]), (1, whole[1:]))):
        tensors, places = {"net.a.w": rows.contiguous()}, {"net.a.w": {"saved_offsets": [offset, 0]}}
        if i:
            tensors["optimizer.a.w.step"], places["optimizer.a.w.step"] = torch.tensor(3.0), {"saved_offsets": []}
        about = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0"}
        save_file(tensors, tmp_path / f"shard-{i}.safetensors", metadata=about)
    read = read_tensors(Checkpoint(tmp_path, run_state(3), ""))
    assert read.keys() == {"net.a.w", "optimizer.a.w.step"}
    assert torch.equal(read["net.a.w"], whole)
    assert torch.equal(read["optimizer.a.w.step"], torch.tensor(3.0))


def test_the_verdict_says_which_check_failed() -> None:
    good, bad = bits("world 2", 3, []), bits("world 2", 3, ["net.a", "net.b"])
    fine = Verdict({"device": "cpu"}, [], [good], elastic=True)
    assert (fine.exact, fine.text(None).splitlines()[-1]) == (True, "verdict: exact and elastic")
    verdict = Verdict({"device": "cpu"}, [], [good, bad], elastic=True)
    assert not verdict.exact
    last = "verdict: NOT exact: world 2, killed and resumed, differs in 2 tensors, net.a the first"
    assert verdict.text(None).splitlines()[-1] == last
    assert json.loads(json.dumps(verdict.tree()))["checks"]["same bits"]["different"] == ["net.a", "net.b"]
    assert "elastic" not in Verdict({}, [], [good], elastic=False).conclusion


def plan(*overrides: str, **options: object) -> Plan:
    given = {"steps": 24, "worlds": "1,2,4", "kills": None, "seed": 0, **options}
    return Plan.make(argparse.Namespace(config=str(CONFIG), overrides=[*overrides, "train.device=cpu"], **given))


@pytest.mark.parametrize("steps", [4, 12, 24, 100])
@pytest.mark.parametrize("seed", range(5))
def test_kills_fall_between_checkpoints_and_are_drawn_by_the_seed(steps: int, seed: int) -> None:
    made = plan(worlds="1,2", steps=steps, seed=seed, kills=1 if steps == 4 else 3)
    for training in made.trainings():
        at = [moment.step for moment in training.moments]
        assert at == sorted(set(at))
        assert all(step % made.every and step < steps - 1 for step in at)
        assert len(training.worlds) == len(at) + 1
        assert training in plan(worlds="1,2", steps=steps, seed=seed, kills=made.kills).trainings()
    if steps == 100:
        other = plan(worlds="1,2", steps=steps, seed=seed + 1, kills=3).trainings()[2]
        assert other.moments != made.trainings()[2].moments


def test_what_is_trained() -> None:
    worlds = {training.name: training.worlds for training in plan().trainings()}
    elastic = {"straight-1": (1,), "straight-4": (4,), "elastic": (1, 2, 4, 1), "control": (4, 4)}
    assert worlds == elastic
    worlds = {training.name: training.worlds for training in plan(worlds="2", kills=2).trainings()}
    assert worlds == {"straight-2": (2,), "control": (2, 2, 2)}
    assert plan(worlds="4,1").other == 1
    # Dropout is by rank, and other world sizes have other ranks; where there is one, it stays.
    assert "stage.network.dropout=0" in plan("stage.network.dropout=0.1").laid_over
    assert "stage.network.dropout=0" not in plan("stage.network.dropout=0.1", worlds="2").laid_over
    assert "train.precision=bf16" in plan("train.precision=bf16").laid_over
    assert "optimizer.eps=0.1" in plan("optimizer.eps=0.1").laid_over
    # At one world size the bits must be the same in whatever precision, and by whatever optimizer, the user trains.
    assert not any("precision" in word or ".eps" in word for word in plan(worlds="2").laid_over)


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [
        ([], {"steps": 3}, "--steps 3 leaves no room"),
        ([], {"worlds": ""}, "not a list of numbers of processes"),
        ([], {"worlds": "1,0"}, "not a list of numbers of processes"),
        ([], {"worlds": "one"}, "not a list of numbers of processes"),
        ([], {"kills": 1}, "--kills 1 is too few"),
        ([], {"worlds": "1", "kills": 0}, "--kills 0 is too few"),
        ([], {"steps": 8, "kills": 9}, "too few to be killed 9 times"),
        (["data.batch_size=3"], {}, "cannot be split over 4 processes"),
        (["data.batch_size=7", "train.accumulate=2"], {}, "make it 8 or more"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan(*overrides, **options)


def test_more_processes_than_gpus_and_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given = {"config": str(CONFIG), "overrides": [], "steps": 24, "kills": None, "seed": 0}
    with pytest.raises(UserError, match="takes 4 GPUs and there are 2"):
        Plan.make(argparse.Namespace(worlds="1,4", **given))
    assert Plan.make(argparse.Namespace(worlds=None, **given)).worlds == (1, 2)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="run it by itself"):
        Plan.make(argparse.Namespace(worlds="1", **given))


def test_a_folder_that_holds_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files already"):
        resume.make_folders(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="a folder that can be written"):
        resume.make_folders(tmp_path / "thesis.tex")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_kills_the_trainings(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_jobs.sys, "executable", sleeper(tmp_path))
    before = signal.getsignal(number)
    ended, started = resume.ended_by_signals(), subprocess_jobs.start(["train"], 2, tmp_path / "log")
    with pytest.raises(SystemExit) as left, ended, started as job:  # noqa: PT012 (the sleep is cut short)
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert left.value.code == 128 + number
    assert job.status() == -signal.SIGKILL
    assert all(process.poll() is not None for process in job.processes)
    assert signal.getsignal(number) is before


def test_progress_is_read_as_it_is_written(tmp_path: Path) -> None:
    progress, path = subprocess_jobs.Progress(tmp_path), tmp_path / "seen" / "rank-00000.jsonl"
    assert progress.look() is None
    path.parent.mkdir()
    for text, step in (('{"step": 7}\n{"st', 7), ('ep": 8}\n{"step": 9}\n', 9), ("", 9), ('{"step": 10}\n', 10)):
        with path.open("a") as file:
            file.write(text)
        assert progress.look() == step


def sleeper(folder: Path) -> str:
    """In the interpreter's place: says where it was put, and sleeps."""
    program = folder / "sleeper"
    program.write_text("#!/bin/sh\necho $RANK of $WORLD_SIZE with $OMP_NUM_THREADS: $@\nsleep 600\n")
    program.chmod(0o755)
    return str(program)


def test_a_job_is_gone_when_it_has_been_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_jobs.sys, "executable", sleeper(tmp_path))
    with subprocess_jobs.Job(["train", "a.yaml"], 2, tmp_path / "log", threads=1) as job:
        while len((tmp_path / "log").read_text().splitlines()) < 2:
            assert job.status() is None
    assert job.status() == -9
    said = sorted((tmp_path / "log").read_text().splitlines())
    assert said == [f"{rank} of 2 with 1: -m diffpipe train a.yaml" for rank in range(2)]
    assert subprocess_jobs.last_words(tmp_path / "log", 1) in said
