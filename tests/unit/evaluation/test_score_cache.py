"""A score file is found again, and the features of an image are computed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from diffpipe.evaluation.score_cache import ScorePlan, cache_features
from diffpipe.metrics import protocol
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.protocol import Result
from tests.support.comparisons import FD, RECALL


def test_features_of_the_same_images_are_found_once() -> None:
    asked: list[int] = []

    def network(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.float().mean((2, 3))

    extractor = cache_features(Extractor("mean", 3, "hash", "none", network))
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    other = images.clone()
    other[0, 0, 0, 0] ^= 1
    first = extractor(images)
    assert torch.equal(extractor(images.clone()), first)
    assert asked == [5]
    assert not torch.equal(extractor(other), first)
    assert asked == [5, 5]
    assert torch.equal(
        extractor(images[:, :, :2].reshape(5, 1, 2, 4)), images[:, :, :2].float().mean((2, 3)).expand(-1, 3)
    )


def test_a_score_file_is_found_again_by_all_that_makes_it_what_it_is(tmp_path: Path) -> None:
    said = {"generated": {"seed": 0}, "reference": {"fingerprint": "f", "shards": ["here"]}, "versions": {"torch": "2"}}
    whole = {"generated": {"seed": 0}, "reference": {"fingerprint": "f"}, "floor": {}, "versions": {"torch": "2"}}
    plan = ScorePlan(whole, [FD], tmp_path / "scores" / "own.json")
    assert plan.existing() is None
    result = Result({FD: 1.0, RECALL: 0.5}, {FD: 0.5, RECALL: 0.5}, said)
    protocol.write(dataclasses.replace(result, protocol=said | {"generated": {"seed": 1}}), plan.path)
    (tmp_path / "scores" / "other.json").write_text("{}")
    assert plan.existing() is None
    protocol.write(result, tmp_path / "scores" / "step.json")
    found = plan.existing()
    assert found is not None
    assert found == (result, tmp_path / "scores" / "step.json")
    assert plan._replace(metrics=["kid"]).existing() is None
