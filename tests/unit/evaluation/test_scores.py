"""The table of scores: the units of papers, and the floor beside each score."""

from __future__ import annotations

from diffpipe.evaluation.scores import table
from diffpipe.metrics.protocol import Result


def test_kernel_distances_are_in_thousandths_and_others_as_they_are() -> None:
    result = Result({"fid": 12.5, "kid": 0.00425}, {"fid": 1.25, "kid": 0.0005}, {})
    fid, kid = (line.split() for line in table(result).splitlines())
    assert (fid[:2], fid[-1]) == (["fid", "12.500"], "1.250)")
    assert (kid[:3], kid[-1]) == (["kid", "×10³", "4.250"], "0.500)")
