"""The config of the diffusion stage: its network, target, schedule, weighting and sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from diffpipe.config.kinds import Kinds
from diffpipe.dependency import Dependency
from diffpipe.diffusion import combinations
from diffpipe.diffusion.combinations import ScheduleConfig
from diffpipe.diffusion.objective import WeightingConfig
from diffpipe.diffusion.parameterization import Parameterization, Prediction
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.diffusion.timesteps import TimestepsConfig
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.nn.adm import ADMConfig
from diffpipe.nn.dit import DiTConfig
from diffpipe.nn.edm2 import EDM2Config
from diffpipe.nn.unet import UNetConfig
from diffpipe.stages.codec import CodecConfig, PixelCodec, PixelCodecConfig
from diffpipe.stages.config import StageConfig
from diffpipe.stages.ddpm import DDPM
from diffpipe.stages.guidance import GuidedSamplerConfig
from diffpipe.stages.latents import latent_codec


class DDPMConfig(StageConfig):
    """Denoising diffusion (Ho et al. 2020)."""

    renamed: ClassVar[dict[str, str]] = {"unet": "network"}

    kind: Literal["ddpm"]
    """Denoising diffusion (Ho et al. 2020), in pixels or in the latents of a VAE."""
    codec: CodecConfig = PixelCodecConfig()
    """The data that is diffused: pixels, or the latents of a VAE (latent diffusion, Rombach et al. 2022)."""
    network: Annotated[
        UNetConfig | ADMConfig | EDM2Config | DiTConfig, Field(discriminator="kind"), Kinds("networks")
    ] = UNetConfig()
    """The network that predicts the noise."""
    prediction: Prediction = "eps"
    """The target of the network: the noise (eps, Ho et al. 2020), the image (x0), v (Salimans & Ho 2022), EDM's
    preconditioned target (edm, Karras et al. 2022), or the velocity of a rectified flow (flow, Liu et al. 2023)."""
    schedule: Annotated[ScheduleConfig, Field(discriminator="kind")] = DiscreteScheduleConfig()
    """The noise levels. Where its kind is left out, prediction edm and flow have the schedules of that name."""
    timesteps: TimestepsConfig = TimestepsConfig()
    """How the noise levels of training are drawn."""
    weighting: WeightingConfig = WeightingConfig()
    """How much the noise levels count in the loss."""
    one_sided_ends: bool = False
    """Where a pixel is black or white, which is an end of the range [-1, 1], a predicted x_0 beyond that end is no
    error: sampling clips it. So a network need not hit a plain background exactly. It takes prediction=x0 in pixels."""
    learned_variance: bool = False
    """Learn the variance of the reverse steps too, with the hybrid loss of Nichol & Dhariwal 2021. It takes a schedule
    with timesteps."""
    sampler: GuidedSamplerConfig = GuidedSamplerConfig()
    """How the trained model samples and scores. It may change from one sampling to the next."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""
    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the samples whose label is hidden in training, which teaches P(X) beside P(X|Y). Guidance needs both.
    For P(X) alone set conditional=false."""

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_the_prediction(cls, tree: Any) -> Any:
        return combinations.with_schedule_kind(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _prediction_fits_the_schedule(self) -> DDPMConfig:
        settings = {"learned_variance": self.learned_variance, "one_sided_ends": self.one_sided_ends}
        if problem := combinations.problem(self.prediction, self.schedule, **settings):
            raise ValueError(problem)
        if self.one_sided_ends and self.codec.kind != "pixels":
            raise ValueError("one_sided_ends is about black and white pixels, and codec.kind is vae; leave it out")
        if self.network.kind == "edm2" and self.prediction != "edm":
            raise ValueError(
                f"network.kind edm2 embeds ln(sigma) / 4, which prediction {self.prediction} does not have; set "
                "prediction=edm"
            )
        return self

    @property
    def parameterization(self) -> Parameterization:
        """The meaning of the network's output."""
        return Parameterization(self.prediction, getattr(self.schedule, "sigma_data", 0.5))

    def describe(self) -> str:
        return f"latent {super().describe()}" if self.codec.kind == "vae" else super().describe()

    def dependencies(self) -> Sequence[Dependency]:
        needed: list[Dependency] = []
        if self.codec.kind == "vae":
            codec = self.codec
            needed.append(Dependency("codec", "stage.codec", "run", codec.run, codec.sha256, needed="always"))
        if self.sampler.guide is not None:
            guide = self.sampler.guide
            needed.append(
                Dependency("guide", "stage.sampler.guide", "run", guide.run, guide.sha256, needed="generation")
            )
        return tuple(needed)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> DDPM:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "codec", the trained VAE, where latents are diffused; "guide", another diffusion, where it guides.
        """
        guide = (dependencies or {}).get("guide")
        if self.codec.kind == "pixels":
            return DDPM(self, shape, PixelCodec(), guide)
        assert dependencies is not None, "the VAE is opened by the caller"
        try:
            codec = latent_codec(dependencies["codec"])
        except UserError as error:
            raise UserError(f"stage.codec.run: {error}") from error
        return DDPM(self, shape, codec, guide)
