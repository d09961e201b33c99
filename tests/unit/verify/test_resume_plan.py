"""The plan of verify-resume: which runs it trains, where they are killed, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.verify.resume_plan import ResumePlan
from tests.support.commands import CONFIG


def plan(*overrides: str, **options: object) -> ResumePlan:
    given: dict[str, Any] = {"steps": 24, "worlds": "1,2,4", "kills": None, "seed": 0, **options}
    return ResumePlan.make(str(CONFIG), [*overrides, "train.device=cpu"], **given)


@pytest.mark.parametrize("steps", [4, 12, 24, 100])
@pytest.mark.parametrize("seed", range(5))
def test_kills_fall_between_checkpoints_and_are_drawn_by_the_seed(steps: int, seed: int) -> None:
    made = plan(worlds="1,2", steps=steps, seed=seed, kills=1 if steps == 4 else 3)
    for run in made.runs():
        at = [point.step for point in run.kill_points]
        assert at == sorted(set(at))
        assert all(step % made.checkpoint_every and step < steps - 1 for step in at)
        assert len(run.worlds) == len(at) + 1
        assert run in plan(worlds="1,2", steps=steps, seed=seed, kills=made.kills).runs()
    if steps == 100:
        other = plan(worlds="1,2", steps=steps, seed=seed + 1, kills=3).runs()[2]
        assert other.kill_points != made.runs()[2].kill_points


def test_what_is_trained() -> None:
    worlds = {run.name: run.worlds for run in plan().runs()}
    elastic = {"uninterrupted-1": (1,), "uninterrupted-4": (4,), "elastic": (1, 2, 4, 1), "control": (4, 4)}
    assert worlds == elastic
    worlds = {run.name: run.worlds for run in plan(worlds="2", kills=2).runs()}
    assert worlds == {"uninterrupted-2": (2,), "control": (2, 2, 2)}
    assert plan(worlds="4,1").other_world == 1
    # Dropout is by rank, and other world sizes have other ranks; where there is one, it stays.
    assert "stage.network.dropout=0" in plan("stage.network.dropout=0.1").forced_overrides
    assert "stage.network.dropout=0" not in plan("stage.network.dropout=0.1", worlds="2").forced_overrides
    assert "train.precision=bf16" in plan("train.precision=bf16").forced_overrides
    assert "optimizer.eps=0.1" in plan("optimizer.eps=0.1").forced_overrides
    # At one world size the bits must be the same in whatever precision, and by whatever optimizer, the user trains.
    assert not any("precision" in word or ".eps" in word for word in plan(worlds="2").forced_overrides)


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
    given: dict[str, Any] = {"steps": 24, "kills": None, "seed": 0}
    with pytest.raises(UserError, match="takes 4 GPUs and there are 2"):
        ResumePlan.make(str(CONFIG), [], worlds="1,4", **given)
    assert ResumePlan.make(str(CONFIG), [], worlds=None, **given).worlds == (1, 2)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="run it without a launcher"):
        ResumePlan.make(str(CONFIG), [], worlds="1", **given)
