"""Remarks on a score: of few images, and of a reference that the run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffpipe.evaluation.score_remarks import TrainingData, print_remarks, score_remarks
from diffpipe.train.runtime import Runtime

NOWHERE = TrainingData(None, [])


def protocol(n: int, reference_n: int, dim: int = 1280, **reference: Any) -> dict[str, Any]:
    about = {"extractor": "efficientnet_lite0", "dim": dim}
    metrics = {
        "fd_efficientnet_lite0": about | {"distance": "frechet"},
        "kid_efficientnet_lite0": about | {"distance": "unbiased MMD^2, kernel (x.y/d + 1)^3"},
    }
    return {"metrics": metrics, "generated": {"n": n}, "reference": {"n": reference_n, **reference}}


@pytest.mark.parametrize(
    ("n", "reference_n", "dim", "few"),
    [(1000, 2000, 1280, 1000), (2000, 300, 1280, 300), (1279, 1280, 1280, 1279), (999, 5000, 64, 999)],
)
def test_a_frechet_distance_of_few_images_is_said_to_be_biased(n: int, reference_n: int, dim: int, few: int) -> None:
    (remark,) = score_remarks(protocol(n, reference_n, dim))
    assert remark.startswith(f"fd_efficientnet_lite0 is of {few:,} images in {dim:,} feature dimensions: ")
    assert "biased upwards" in remark


def test_a_score_of_many_images_and_one_without_a_frechet_distance_have_no_remark() -> None:
    assert score_remarks(protocol(1280, 1280)) == []
    assert score_remarks(protocol(1000, 1000, 64), NOWHERE) == []
    only_kid = protocol(10, 10)
    del only_kid["metrics"]["fd_efficientnet_lite0"]
    assert score_remarks(only_kid) == []


@pytest.mark.parametrize(
    ("trained", "holds"),
    [
        (TrainingData("f" * 64, []), True),
        (TrainingData("e" * 64, "elsewhere"), False),
        (TrainingData(None, "shards/photos/"), True),
        (TrainingData(None, "./shards/photos/photos-000001.tar"), True),
        (TrainingData(None, str(Path("shards/photos").absolute())), True),
        (TrainingData(None, ["shards/a", "shards/photos/photos-*.tar"]), True),
        (TrainingData(None, ["shards", "shards/photo"]), False),
        (NOWHERE, False),
    ],
)
def test_a_reference_that_was_trained_on_is_known_by_its_fingerprint_or_its_paths(
    trained: TrainingData, holds: bool
) -> None:
    shards = [f"shards/photos/photos-00000{i}.tar" for i in (0, 1)]
    remarks = score_remarks(protocol(2000, 2000, fingerprint="f" * 64, shards=shards), trained)
    assert len(remarks) == holds
    assert all("shards that the run was trained on" in remark for remark in remarks)


@pytest.mark.parametrize("odd", [{}, {"metrics": 1, "generated": [], "reference": "x"}, protocol(1, 1, dim=None)])  # type: ignore[arg-type]
def test_a_protocol_of_somebody_else_may_have_any_form(odd: dict[str, Any]) -> None:
    assert score_remarks(odd, TrainingData("a", "b")) == []


def test_remarks_are_notes(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    print_remarks(["one", "two"], runtime)
    assert capsys.readouterr().err == "note: one\nnote: two\n"
