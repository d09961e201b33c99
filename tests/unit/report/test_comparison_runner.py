"""Runs that cannot be compared are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.evaluation.score_cache import CachedScore
from diffpipe.metrics.protocol import Result
from diffpipe.report.comparison_runner import require_comparable, require_one_size
from diffpipe.resolution import square
from tests.support.comparisons import FD


def scored(n: int = 60, fingerprint: str = "f", sha256: str = "s") -> CachedScore:
    said = {
        "generated": {"n": n},
        "reference": {"n": 9, "fingerprint": fingerprint},
        "metrics": {FD: {"sha256": sha256}},
    }
    return CachedScore(Result({FD: 1.0}, {FD: 0.5}, said), Path("score.json"), reused=True)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (scored(n=61), "generated.n: 60 against 61"),
        (scored(fingerprint="g"), "reference.fingerprint: 'f' against 'g'"),
        (scored(sha256="t"), f"metrics.{FD}.sha256: 's' against 't'"),
    ],
)
def test_scores_of_unlike_protocols_are_not_put_side_by_side(other: CachedScore, field: str) -> None:
    require_comparable({"a": scored(), "coder": None, "b": scored()})
    with pytest.raises(UserError, match=r"a and c follow unlike protocols .*, with --fresh") as refused:
        require_comparable({"a": scored(), "coder": None, "b": scored(), "c": other})
    assert field in str(refused.value)


def test_runs_of_other_sizes_are_refused() -> None:
    require_one_size({"a": (1, square(28)), "b": (1, square(28))})
    with pytest.raises(UserError, match="a makes images of 1×28×28 and c of 3×32×32"):
        require_one_size({"a": (1, square(28)), "b": (1, square(28)), "c": (3, square(32))})
