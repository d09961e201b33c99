"""A job from its checks to its last checkpoint: two steps of the tiny diffusion, stopped and resumed."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.experiment.job import Job
from diffpipe.experiment.preflight import open_data
from diffpipe.train.checkpoint import committed, open_checkpoint
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import Agreed, StopConsensus
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES

WORDS = ["data.batch_size=4", "data.test=null", "sample.every=0", "checkpoint.async=false", "train.precision=fp32"]


class StopAfter(StopConsensus):
    """Asks the job to stop by SIGTERM at the n-th poll."""

    def __init__(self, n: int):
        self.polls = n
        self.comm = Communicator()

    def poll(self, *, failed: bool = False) -> Agreed:
        self.polls -= 1
        return Agreed(signal.SIGTERM if self.polls == 0 else None, failed)


def prepared(home: Path, runtime: Runtime, *words: str) -> Job:
    images = home.parent / "images"
    if not images.exists():
        indexed_shards(images, 12)
    experiment = CASES["ddpm"].experiment(*WORDS, f"run.dir={home}", f"data.train={images}", "train.steps=3", *words)
    return Job.prepare(experiment, runtime, *open_data(experiment, 1))


def recorded(home: Path) -> list[tuple[str, int]]:
    events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    return [(event["event"], event["step"]) for event in events]


def test_a_job_stops_by_a_signal_and_goes_on_where_it_was(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "run"
    first = prepared(home, runtime)
    assert first.checkpoint is None
    assert first.run(StopAfter(2)) == signal.SIGTERM
    interrupted = json.loads((home / ".interrupted").read_text())
    assert interrupted == {"signal": "SIGTERM", "step": first.trainer.step}
    assert recorded(home) == [("start", 0), ("stop", first.trainer.step)]
    assert [path.name for path in committed(home / "checkpoints")] == [f"step-{first.trainer.step:08d}"]

    second = prepared(home, runtime, "stage.sampler.steps=2")
    assert second.checkpoint is not None
    second.resume()
    assert (second.trainer.step, second.trainer.position) == (first.trainer.step, 4 * first.trainer.step)
    before, after = first.trainer.state(), second.trainer.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert second.run(StopAfter(99)) is None
    assert not (home / ".interrupted").exists()
    assert recorded(home)[2:] == [("resume", first.trainer.step), ("finish", 3)]
    assert committed(home / "checkpoints")[0].name == "step-00000003"
    assert "steps: 2" in (home / "config.yaml").read_text()

    capsys.readouterr()
    assert prepared(home, runtime).run(StopAfter(99)) is None
    printed = capsys.readouterr()
    assert "trained to step 3 already; raise train.steps to go on" in printed.out + printed.err


def test_a_line_of_metrics_has_the_keys_that_the_readme_lists(tmp_path: Path, runtime: Runtime) -> None:
    prepared(tmp_path / "run", runtime, "train.steps=1", "train.log_every=1").run(StopAfter(99))
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    page = (Path(__file__).parents[3] / "launch" / "README.md").read_text(encoding="utf-8")
    table = [row.split("|")[1] for row in page.partition("### metrics.jsonl")[2].splitlines() if row.startswith("| `")]
    listed = {word for names in table[: table.index(" `skipped`, `bad` ") + 1] for word in re.findall("`(.+?)`", names)}
    quarters = {"loss_q1", "loss_q2", "loss_q3", "loss_q4"}  # of four samples some quarter may have none
    written = set(json.loads(line))
    assert quarters & written
    assert written | quarters == listed - {"validation_loss", "skipped", "bad"}


def test_a_run_of_another_seed_is_refused_before_a_step(tmp_path: Path, runtime: Runtime) -> None:
    home = tmp_path / "run"
    prepared(home, runtime, "train.steps=1").run(StopAfter(99))
    other = prepared(home, runtime, "seed=9")
    with pytest.raises(UserError, match="seed was 0 and is 9"):
        other.run(StopAfter(99))
    assert [path.name for path in committed(home / "checkpoints")] == ["step-00000001"]


def test_a_job_ends_when_its_minutes_are_over_and_says_so(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    home, words = tmp_path / "run", ("train.steps=100000", "train.minutes=0.005")
    first = prepared(home, runtime, *words)
    assert first.run(StopAfter(0)) is None
    last = first.trainer.step
    assert 1 < last < 1000
    checkpoint = open_checkpoint(committed(home / "checkpoints")[0], runtime.comm)
    assert (checkpoint.step, checkpoint.state.time) == (last, first.trainer.budget.state(last))
    capsys.readouterr()
    assert prepared(home, runtime, *words).run(StopAfter(0)) is None
    printed = capsys.readouterr()
    assert f"trained to step {last} already; raise train.minutes to go on" in printed.out + printed.err
