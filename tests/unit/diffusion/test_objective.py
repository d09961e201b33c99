"""The simple loss, and the weights against the papers' formulas for each target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffpipe.diffusion.objective import WeightingConfig, output_weight, simple_loss
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import DiscreteScheduleConfig

SCHEDULE = DiscreteScheduleConfig(kind="cosine").build()
LEVEL = SCHEDULE.level(torch.arange(SCHEDULE.T))
SNR = (LEVEL.alpha / LEVEL.sigma) ** 2


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_loss_is_the_mean_square_of_each_sample():
    eps, eps_hat = images(4), images(4, seed=1)
    loss = simple_loss(eps, eps_hat)
    torch.testing.assert_close(
        loss, torch.stack([torch.nn.functional.mse_loss(*p) for p in zip(eps, eps_hat, strict=True)])
    )
    assert (simple_loss(eps, eps) == 0).all()


def test_the_loss_is_float32_and_has_a_gradient_in_half_precision_too():
    eps, eps_hat = images(4), images(4, seed=1).bfloat16().requires_grad_()
    loss = simple_loss(eps, eps_hat)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert eps_hat.grad is not None
    torch.testing.assert_close(eps_hat.grad.float(), 2 * (eps_hat.detach().float() - eps) / 48, atol=1e-3, rtol=1e-2)


def weight(kind: str, target: Any, level: NoiseLevel = LEVEL, **settings: Any) -> Any:
    config = WeightingConfig.model_validate({"kind": kind, **settings})
    return output_weight(config, Parameterization(target), level)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("min_snr", "eps", SNR.clamp(max=5) / SNR),  # Hang et al. 2023, section 3.4, for each target
        ("min_snr", "x0", SNR.clamp(max=5)),
        ("min_snr", "v", SNR.clamp(max=5) / (SNR + 1)),
        ("p2", "eps", 1 / (1 + SNR)),  # Choi et al. 2022, eq. 8
        ("p2", "x0", SNR / (1 + SNR)),
        ("edm", "eps", 1 + 4 / SNR),  # lambda(sigma) of Karras et al. 2022 at sigma_data 1/2, times the error of x_0
        ("edm", "x0", SNR + 4),
    ],
)
def test_weights_are_the_papers(kind, target, expected):
    torch.testing.assert_close(weight(kind, target), expected, rtol=1e-9, atol=0)


def test_the_settings_of_the_weights_count():
    torch.testing.assert_close(weight("min_snr", "x0", gamma=2.0), SNR.clamp(max=2), rtol=1e-9, atol=0)
    expected = 1 / (0.5 + SNR) ** 2
    torch.testing.assert_close(weight("p2", "eps", gamma=2.0, k=0.5), expected, rtol=1e-9, atol=0)


def test_the_simple_loss_of_edm_is_the_papers_weighted_loss():
    """lambda(sigma) c_out^2 = 1 (Karras et al. 2022, eq. 8 and table 1)."""
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    level = NoiseLevel(torch.ones_like(sigma), sigma, sigma)
    torch.testing.assert_close(weight("edm", "edm", level), torch.ones_like(sigma), rtol=1e-9, atol=0)
    assert weight("simple", "edm", level) == 1.0


def end(alpha: float, sigma: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor([alpha]).double(), torch.tensor([sigma]).double(), torch.tensor([0]))


SILENT, CLEAN = end(0.0, 1.0), end(1.0, 0.0)
INF = float("inf")


@pytest.mark.parametrize(
    ("kind", "settings", "target", "without_signal", "without_noise"),
    [
        ("min_snr", {}, "eps", 1, 0),
        ("min_snr", {}, "x0", 0, 5),
        ("min_snr", {}, "v", 0, 0),
        ("min_snr", {}, "flow", 0, 0),
        ("p2", {"k": 2.0, "gamma": 0.5}, "eps", 0.5**0.5, 0),
        ("p2", {"k": 2.0, "gamma": 0.5}, "v", 0, 0),
        ("p2", {}, "x0", 0, 1),
        ("p2", {"k": 2.0, "gamma": 2.0}, "eps", 0.25, 0),
        ("p2", {"k": 2.0, "gamma": 2.0}, "x0", 0, 0),
        ("p2", {"k": 2.0, "gamma": 2.0}, "v", 0, 0),
        ("p2", {"k": 2.0, "gamma": 2.0}, "flow", 0, 0),
        ("p2", {"gamma": 1000.0}, "x0", 0, 0),
        ("edm", {}, "eps", INF, 1),
        ("edm", {}, "x0", 4, INF),
        ("edm", {}, "v", 4, 1),
        ("edm", {}, "flow", 4, 1),
    ],
)
def test_weights_have_their_limits_without_signal_and_without_noise(
    kind: str, settings: dict[str, float], target: str, without_signal: float, without_noise: float
) -> None:
    for level, expected in ((SILENT, without_signal), (CLEAN, without_noise)):
        assert weight(kind, target, level, **settings).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["min_snr", "p2", "edm"])
def test_edms_output_has_a_weight_at_every_sigma(kind: str) -> None:
    for sigma in (0.0, 1e-9, 80.0, 1e6):
        assert weight(kind, "edm", end(1.0, sigma)).isfinite().all()


def test_a_large_exponent_is_finite_or_refused() -> None:
    for target in ("eps", "x0", "v"):
        assert weight("p2", target, gamma=1000.0).isfinite().all()
    with pytest.raises(ValueError, match=r"gamma 1000.0 and k 0.5 weight pure noise by over 1e\+30"):
        WeightingConfig(kind="p2", gamma=1000.0, k=0.5)
