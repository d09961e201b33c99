"""The loss of a diffusion's network for one batch: its weighted square error, and the bound of a learned variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoised
from diffpipe.diffusion.objective import WeightingConfig, output_weight, simple_loss
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import NoiseLevel, q_sample
from diffpipe.diffusion.schedule import Schedule
from diffpipe.diffusion.vlb import hybrid_term
from diffpipe.interfaces import Loss


class NoisedBatch(NamedTuple):
    """Clean data x0 and noise eps, float [b, *shape], and what the noise level of each sample makes of them, x_t."""

    x0: Float[Tensor, " b *shape"]
    eps: Float[Tensor, " b *shape"]
    level: NoiseLevel
    x_t: Float[Tensor, " b *shape"]

    @classmethod
    def of(cls, x0: Float[Tensor, " b *shape"], eps: Float[Tensor, " b *shape"], level: NoiseLevel) -> NoisedBatch:
        return cls(x0, eps, level, q_sample(level, x0, eps))


def training_loss(
    parameterization: Parameterization,
    schedule: Schedule,
    weighting: WeightingConfig,
    noised: NoisedBatch,
    output: Float[Tensor, "b c2 *rest"],
    log_variance: Float32[Tensor, " b"] | None = None,
    *,
    one_sided_ends: bool = False,
) -> Loss:
    """The loss of each sample, given the network's output for x_t.

    output: where it has twice the channels of x_0, the second half is the learned variance. log_variance: u of the
    learned weighting, which makes the loss mse / exp(u) + u (Karras et al. 2024, eq. 14). one_sided_ends: for outputs
    that are x_0, see `within_ends`. metrics: the plain square error in each quarter of the noise levels, loss_q1 (the
    least noise) to loss_q4, and `mse` or `vlb` where the loss has other terms.
    """
    x0, eps, level, x_t = noised
    channels = x0.shape[1]
    prediction, variance = output[:, :channels], output[:, channels:]
    target = parameterization.target(level, x0, eps)
    loss = mse = simple_loss(target, within_ends(target, prediction) if one_sided_ends else prediction)
    metrics = {}
    if log_variance is not None:
        loss, metrics = mse / log_variance.exp() + log_variance, {"mse": mse}
    elif weighting.kind != "simple":
        loss = mse * output_weight(weighting, parameterization, level).float()
    if variance.shape[1]:
        x0_hat = parameterization.x0(level, x_t, prediction.detach().float())
        vlb = hybrid_term(schedule, level, x0, x_t, Denoised(x0_hat, (variance.float() + 1) / 2))
        loss, metrics = loss + vlb, {**metrics, "vlb": vlb}
    return Loss(loss, {**metrics, **_quarters(schedule.position(level), mse)})


def within_ends(x0: Float[Tensor, "*shape"], prediction: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The predicted x_0, set to x_0 where that is at an end of [-1, 1] and the prediction beyond it.

    There its error is that of the prediction as samplers clip it, which is none. Elsewhere a prediction beyond the
    range keeps its whole error and gradient, which bring it back. The best prediction, the mean of x_0 given x_t, lies
    within the range, so it stays the minimum.
    """
    beyond = ((x0 <= -1) & (prediction < -1)) | ((x0 >= 1) & (prediction > 1))
    return torch.where(beyond, x0.to(prediction.dtype), prediction)


def _quarters(position: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """The loss of the samples in each quarter of the noise levels. The trainer's means leave out the others' nan."""
    quarter = (position * 4).long().clamp(0, 3)
    rows = loss.where(quarter == torch.arange(4, device=loss.device)[:, None], torch.nan)
    return {f"loss_q{i + 1}": row for i, row in enumerate(rows)}
