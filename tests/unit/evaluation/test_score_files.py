"""Names of score files: another for each protocol, the same for the same one on another day and in another place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.evaluation.score_files import require_own_folder, score_file

PROTOCOL: dict[str, Any] = {
    "generated": {"n": 9, "seed": 0, "weights": "ema", "labels": None, "sampler": {"steps": 4, "guidance": 1.0}},
    "reference": {"n": 9, "fingerprint": "f", "shards": ["a.tar"]},
    "metrics": {"fid": {"sha256": "s"}},
    "versions": {"torch": "2"},
    "date": "2026-01-01",
}


def named(**changes: Any) -> Path:
    return score_file(Path("run"), "eval", 7, 9, PROTOCOL | changes)


def test_the_name_says_the_kind_the_step_and_the_number_of_images() -> None:
    assert named().parent == Path("run/scores")
    assert named().name.startswith("eval-step-00000007-n9-")


@pytest.mark.parametrize(
    "changes",
    [
        {"generated": PROTOCOL["generated"] | {"seed": 1}},
        {"generated": PROTOCOL["generated"] | {"weights": "raw"}},
        {"generated": PROTOCOL["generated"] | {"labels": 3}},
        {"generated": PROTOCOL["generated"] | {"sampler": {"steps": 4, "guidance": 2.0}}},
        {"reference": PROTOCOL["reference"] | {"fingerprint": "g"}},
        {"metrics": {"kid": {"sha256": "s"}}},
    ],
)
def test_two_protocols_have_two_files(changes: dict[str, Any]) -> None:
    assert named(**changes) != named()


def test_the_date_the_versions_and_the_place_of_the_images_make_no_other_score() -> None:
    moved = PROTOCOL["reference"] | {"shards": ["b.tar"]}
    assert named(date="2027-01-01", versions={"torch": "3"}, reference=moved) == named()


def test_no_score_goes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    require_own_folder(tmp_path / "run")
    (tmp_path / "run" / "scores").symlink_to(tmp_path / "elsewhere")
    for place in (tmp_path / "run", checkpoint):
        with pytest.raises(UserError, match=r"run/scores: a symbolic link, .* give --out"):
            require_own_folder(place)
    with pytest.raises(UserError, match="a symbolic link"):
        score_file(tmp_path / "run", "eval", 7, 9, PROTOCOL)
