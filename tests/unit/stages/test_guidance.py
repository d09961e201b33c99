"""Classifier-free guidance: the extrapolation, its interval, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffpipe.diffusion.process import NoiseLevel
from diffpipe.errors import UserError
from diffpipe.stages.guidance import GuidedSamplerConfig, check_guidance, check_interval, predict


class LabelTimes(nn.Module):
    """Predicts 0.1 × label, in twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, Any]] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        self.calls.append((x, labels))
        return torch.zeros_like(x) if labels is None else 0.1 * labels[:, None, None, None] * torch.ones_like(x)


X, T = torch.zeros(3, 1, 4, 4), torch.tensor([5, 5, 5])


def test_guidance_is_the_extrapolation_from_unconditional_to_conditional() -> None:
    # eps is 0.4 with the empty label, and 0.4 + w (0.1 y - 0.4) guided.
    labels = torch.tensor([0, 1, 2])
    for weight in (1.0, 3.0):
        predicted = predict(LabelTimes(), X, T, labels, classes=4, guidance=weight)
        torch.testing.assert_close(predicted[:, 0, 0, 0], 0.4 + weight * (0.1 * labels - 0.4))


def test_without_labels_a_conditional_network_gets_the_empty_one_and_another_none() -> None:
    net = LabelTimes()
    torch.testing.assert_close(predict(net, X, T, None, classes=4, guidance=3.0), torch.full_like(X, 0.4))
    predict(net, X, T, torch.tensor([0, 1, 2]), classes=0, guidance=3.0)
    assert net.calls[0][1].tolist() == [4, 4, 4]
    assert net.calls[1][1] is None


def test_a_learned_variance_is_not_extrapolated() -> None:
    class Two(LabelTimes):
        def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            one = super().forward(x, t, labels)
            return torch.cat([one, one], dim=1)

    labels = torch.tensor([0, 1, 2])
    predicted = predict(Two(), X, T, labels, classes=4, guidance=3.0)
    torch.testing.assert_close(predicted[:, 0, 0, 0], 0.4 + 3 * (0.1 * labels - 0.4))
    torch.testing.assert_close(predicted[:, 1, 0, 0], 0.1 * labels)


def test_the_interval_is_of_sigma_over_alpha() -> None:
    sampler = GuidedSamplerConfig(guidance=2.0, guidance_interval=(0.5, 4.0))
    for ratio, guided in ((0.4, False), (0.6, True), (3.0, True), (5.0, False), (0.0, False)):
        alpha = 1 / (1 + ratio**2) ** 0.5
        assert sampler.guides(NoiseLevel(alpha, ratio * alpha, 0)) is guided
    assert not sampler.guides(NoiseLevel(0.0, 1.0, 999))
    assert GuidedSamplerConfig(guidance=2.0).guides(NoiseLevel(0.0, 1.0, 999))
    assert not GuidedSamplerConfig().guides(NoiseLevel(0.6, 0.8, 9))


def test_guidance_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        GuidedSamplerConfig(guidance=1e39)
    check_guidance(GuidedSamplerConfig(), conditional=False, label_dropout=0.0)
    check_guidance(GuidedSamplerConfig(guidance=2), conditional=True, label_dropout=0.1)
    with pytest.raises(UserError, match=r"needs labels to guide by; set stage\.conditional=true"):
        check_guidance(GuidedSamplerConfig(guidance=2), conditional=False, label_dropout=0.1)
    with pytest.raises(UserError, match=r"trained without labels too; train with a stage\.label_dropout above 0"):
        check_guidance(GuidedSamplerConfig(guidance=2), conditional=True, label_dropout=0.0)


def test_an_interval_between_or_beyond_the_visited_levels_is_refused() -> None:
    visited = [NoiseLevel(1.0, ratio, 0) for ratio in (80.0, 2.0, 0.1)]
    for interval in ((1.0, 3.0), (0.1, 0.2), (0.0, 1e9)):
        check_interval(GuidedSamplerConfig(guidance=2, guidance_interval=interval), visited)
    for interval in ((1e6, 1e7), (3.0, 5.0), (-2.0, -1.0)):
        check_interval(GuidedSamplerConfig(guidance=1, guidance_interval=interval), visited)
        with pytest.raises(UserError, match=r"holds none of the noise levels sigma/alpha that are visited, 0.1 to 80"):
            check_interval(GuidedSamplerConfig(guidance=2, guidance_interval=interval), visited)
