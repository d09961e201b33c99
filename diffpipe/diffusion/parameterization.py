"""The meaning of a network's output: eps, x_0, v, the velocity of a flow, or EDM's preconditioned output.

Each target is a combination F = a x_0 + b eps whose coefficients depend on the noise level alone. With x_t = alpha x_0
+ sigma eps that is a linear system of two equations, so every conversion is its solution: samplers, objectives and
bounds ask for x_0 and never know which target the network has.

| prediction | a | b | source |
|---|---|---|---|
| eps | 0 | 1 | Ho et al. 2020 |
| x0 | 1 | 0 | Ho et al. 2020, section 3.2 |
| v | -sigma | alpha | Salimans & Ho 2022, appendix D |
| flow | -1 | 1 | Liu et al. 2023; Lipman et al. 2023 (the velocity dx_t/dt of x_t = (1 - t) x_0 + t eps) |
| edm | r / (d sqrt(r^2 + d^2)) | -d / sqrt(r^2 + d^2) | Karras et al. 2022, table 1, r = sigma/alpha, d = sigma_data |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffpipe.diffusion.process import Coefficient, NoiseLevel, append_dims

Prediction = Literal["eps", "x0", "v", "edm", "flow"]


@dataclass(frozen=True)
class Parameterization:
    """The meaning of a network's output and the scale of its input.

    sigma_data: the standard deviation of x_0, which only edm needs.
    """

    kind: Prediction
    sigma_data: float = 0.5

    def coefficients(self, level: NoiseLevel) -> tuple[Coefficient, Coefficient]:
        """(a, b) of the target a x_0 + b eps: numbers, or float64 [b] where the level has one for each sample."""
        match self.kind:
            case "eps":
                return 0.0, 1.0
            case "x0":
                return 1.0, 0.0
            case "v":
                return -1 * level.sigma, level.alpha
            case "flow":
                return -1.0, 1.0
            case "edm":
                root = (level.ratio**2 + self.sigma_data**2) ** 0.5
                return level.ratio / (self.sigma_data * root), -self.sigma_data / root

    def input_scale(self, level: NoiseLevel) -> Coefficient:
        """The factor on x_t at the network's input: 1 / sqrt(sigma^2 + sigma_data^2) for edm, else 1."""
        if self.kind != "edm":
            return 1.0
        return (level.sigma**2 + (level.alpha * self.sigma_data) ** 2) ** -0.5

    def target(
        self, level: NoiseLevel, x0: Float[Tensor, " b *shape"], eps: Float[Tensor, " b *shape"]
    ) -> Float[Tensor, " b *shape"]:
        """The right output for x_t = alpha x_0 + sigma eps."""
        match self.kind:
            case "eps":
                return eps
            case "x0":
                return x0
        a, b = self.coefficients(level)
        return append_dims(a, x0) * x0 + append_dims(b, x0) * eps

    def x0(
        self, level: NoiseLevel, x_t: Float[Tensor, " b *shape"], output: Float[Tensor, " b *shape"]
    ) -> Float[Tensor, " b *shape"]:
        """The x_0 that the network's output stands for: Cramer's rule. Only eps cannot tell it without any signal."""
        if self.kind == "x0":
            return output
        _, b, det = self._system(level)
        return (append_dims(b, x_t) * x_t - append_dims(level.sigma, x_t) * output) / append_dims(det, x_t)

    def eps(
        self, level: NoiseLevel, x_t: Float[Tensor, " b *shape"], output: Float[Tensor, " b *shape"]
    ) -> Float[Tensor, " b *shape"]:
        """The eps that the network's output stands for. Only x0 cannot tell it without any noise."""
        if self.kind == "eps":
            return output
        a, _, det = self._system(level)
        return (append_dims(level.alpha, x_t) * output - append_dims(a, x_t) * x_t) / append_dims(det, x_t)

    def x0_error(self, level: NoiseLevel) -> Coefficient:
        """(sigma / det)^2: the square error of x_0 for one of 1 in the output. It turns a weight on ||x_0 - x_0_hat||^2
        into one on the output's error: 1 / SNR for eps, 1 / (SNR + 1) for v.
        """
        return 1.0 if self.kind == "x0" else (level.sigma / self._system(level)[2]) ** 2

    def eps_error(self, level: NoiseLevel) -> Coefficient:
        """(alpha / det)^2: the square error of eps for one of 1 in the output, which is SNR times that of x_0: SNR for
        x0, SNR / (SNR + 1) for v.
        """
        return 1.0 if self.kind == "eps" else (level.alpha / self._system(level)[2]) ** 2

    def _system(self, level: NoiseLevel) -> tuple[Coefficient, Coefficient, Coefficient]:
        """a, b, and the determinant of x_t = alpha x_0 + sigma eps and F = a x_0 + b eps."""
        a, b = self.coefficients(level)
        return a, b, level.alpha * b - level.sigma * a


def x0_from_eps(
    level: NoiseLevel, x_t: Float[Tensor, " b *shape"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_0 from x_t and eps (Ho et al. 2020, eq. 15)."""
    return Parameterization("eps").x0(level, x_t, eps)


def eps_from_x0(
    level: NoiseLevel, x_t: Float[Tensor, " b *shape"], x0: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """eps from x_t and x_0."""
    return Parameterization("x0").eps(level, x_t, x0)
