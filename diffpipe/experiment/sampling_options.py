"""The options of sampling, of `diffpipe sample` and `LoadedRun.sample` alike, and the keys of the config they set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from diffpipe.errors import UserError
from diffpipe.nearest import did_you_mean


class SamplingOptions(TypedDict, total=False):
    """How to sample. None leaves an option as the run's config has it; the keys are explained under stage.sampler."""

    sampler: str | None
    steps: int | None
    """Steps from noise to image."""
    spacing: str | None
    eta: float | None
    clip: bool | None
    dynamic_threshold: float | None
    variance: Literal["small", "large"] | None
    churn: float | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    guide: str | Path | None
    """A run that guides (autoguidance); "none": no run does."""
    temperature: float | None
    """The factor on the normal noise of a flow, VAE, GAN or adversarial denoiser, or the divisor of the logits of an
    autoregressive model."""
    top_k: int | None
    """The number of likeliest values that an autoregressive model draws a token from."""
    top_p: float | None
    """The probability of those likeliest values."""
    ema: float | None
    """The length of the moving average, such as 0.1, of a run with ema.kind=power. Its weights are loaded."""


_KEYS = {name: "kind" if name == "sampler" else name for name in SamplingOptions.__annotations__}
NAMES = tuple(_KEYS)
OF_DIFFUSION = tuple(name for name in NAMES if name not in ("sampler", "temperature", "top_k", "top_p", "ema"))
"""The keys of stage.sampler that only a diffusion has, with the option of the same name."""


def sampling_overrides(options: Mapping[str, Any]) -> list[str]:
    """The options as `key=value` overrides of a run's config. Those of the weights are left out. Raises UserError."""
    words = []
    for name, value in options.items():
        if name not in _KEYS:
            near = did_you_mean(name, NAMES) or f"they are {', '.join(NAMES)}"
            raise UserError(f"{name} is no option of sampling; {near}")
        if value is None or name == "ema":
            continue
        if name == "guide":
            words += _guide_overrides(str(value))
        elif name == "guidance_interval":
            words.append(f"stage.sampler.{name}=[{value if isinstance(value, str) else ','.join(map(str, value))}]")
        else:
            words.append(f"stage.sampler.{_KEYS[name]}={value}")
    return words


def _guide_overrides(guide: str) -> list[str]:
    """Another guide than the config's has another hash."""
    if guide == "none":
        return ["stage.sampler.guide=null"]
    return [f"stage.sampler.guide.run={guide}", "stage.sampler.guide.sha256=null"]
