"""The distribution of a token's values, given what the network says of it: for each value in turn, and of all at once.

No networks here: a head says how many numbers it needs for a token, and reads them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.stages.likelihood import bounded_log_scale, discretized_logistic

_INITIAL_LOG_SCALE = -2.0


@runtime_checkable
class Head(Protocol):
    """The distribution of the values of a token.

    parts: tokens per pixel. out: numbers per token that it reads.
    """

    parts: int
    out: int

    def log_likelihood(
        self, parameters: Float[Tensor, "b n out"], values: Int[Tensor, "b n v"]
    ) -> Float[Tensor, "b n"]:
        """The log-probability of each token's values together."""
        ...

    def log_probs(self, parameters: Float[Tensor, "b out"], before: Int[Tensor, "b k"]) -> Float[Tensor, "b levels"]:
        """The log-probability of each level for value k of a token, given its values before."""
        ...


class CategoricalConfig(Config):
    """A probability for each value."""

    kind: Literal["categorical"]
    """A probability for each of the 256 values. Each channel of a pixel is a token."""

    def build(self, channels: int, levels: int) -> Categorical:
        return Categorical(channels, levels)


class LogisticMixtureConfig(Config):
    """A mixture of discretized logistics."""

    kind: Literal["logistic_mixture"]
    """A mixture of discretized logistics (Salimans et al. 2017, "PixelCNN++"). A pixel is one token: the means of its
    later channels are linear in the earlier ones. Near values have near probabilities from the start."""
    mixtures: int = Field(default=10, ge=1)
    """Logistics in the mixture."""

    def build(self, channels: int, levels: int) -> LogisticMixture:
        return LogisticMixture(channels, levels, self.mixtures)


class Categorical:
    """A softmax over the levels, for each channel of each pixel."""

    def __init__(self, channels: int, levels: int):
        self.parts, self.out = channels, levels

    def log_likelihood(
        self, parameters: Float[Tensor, "b n out"], values: Int[Tensor, "b n 1"]
    ) -> Float[Tensor, "b n"]:
        return -F.cross_entropy(rearrange(parameters, "b n out -> b out n"), values[:, :, 0], reduction="none")

    def log_probs(self, parameters: Float[Tensor, "b out"], before: Int[Tensor, "b 0"]) -> Float[Tensor, "b out"]:
        return parameters.log_softmax(dim=1)


class _Components(NamedTuple):
    """The mixture's logistics. Those of a later channel depend on the earlier ones by the slopes."""

    log_weights: Float[Tensor, "*axes k"]
    means: Float[Tensor, "*axes c k"]
    log_scales: Float[Tensor, "*axes c k"]
    slopes: Float[Tensor, "*axes pairs k"]


class LogisticMixture:
    """A mixture over whole pixels (Salimans et al. 2017, equations 2 and 3).

    The means start spread over all values, where the paper sets them by the data.
    """

    parts = 1

    def __init__(self, channels: int, levels: int, mixtures: int):
        self.channels, self.levels, self.mixtures = channels, levels, mixtures
        self.pairs = channels * (channels - 1) // 2
        self.out = mixtures * (1 + 2 * channels + self.pairs)

    def log_likelihood(
        self, parameters: Float[Tensor, "b n out"], values: Int[Tensor, "b n v"]
    ) -> Float[Tensor, "b n"]:
        return self._joint(self._components(parameters), values).logsumexp(dim=-1)

    def log_probs(self, parameters: Float[Tensor, "b out"], before: Int[Tensor, "b k"]) -> Float[Tensor, "b levels"]:
        components = self._components(parameters)
        weights = self._joint(components, before).log_softmax(dim=-1)  # by how well they explain the values before
        mean, log_scale = self._channel(components, before)
        levels = torch.arange(self.levels, device=parameters.device)
        values = discretized_logistic(levels[:, None], mean[:, None], log_scale[:, None], self.levels)
        return (weights[:, None] + values).logsumexp(dim=-1)

    def _components(self, parameters: Float[Tensor, "*axes out"]) -> _Components:
        k, c = self.mixtures, self.channels
        weights, means, raw, slopes = parameters.split([k, c * k, c * k, self.pairs * k], dim=-1)
        spread = torch.linspace(-1, 1, k + 2, device=parameters.device, dtype=parameters.dtype)[1:-1]
        return _Components(
            weights.log_softmax(dim=-1),
            means.unflatten(-1, (c, k)) + spread,
            bounded_log_scale(raw.unflatten(-1, (c, k)) + _INITIAL_LOG_SCALE),
            torch.tanh(slopes.unflatten(-1, (self.pairs, k))),
        )

    def _joint(self, components: _Components, values: Int[Tensor, "*axes v"]) -> Float[Tensor, "*axes k"]:
        """The log-probability of each component and of a pixel's first values."""
        total = components.log_weights
        for i in range(values.shape[-1]):
            mean, log_scale = self._channel(components, values[..., :i])
            total = total + discretized_logistic(values[..., i, None], mean, log_scale, self.levels)
        return total

    def _channel(self, components: _Components, before: Int[Tensor, "*axes k"]) -> tuple[Tensor, Tensor]:
        """The means and log-scales of the channel after those that are given."""
        i = before.shape[-1]
        x = 2 * before.to(components.means.dtype) / (self.levels - 1) - 1
        slopes = components.slopes[..., i * (i - 1) // 2 : i * (i + 1) // 2, :]
        return components.means[..., i, :] + (slopes * x[..., None]).sum(-2), components.log_scales[..., i, :]
