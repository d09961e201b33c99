"""A diffusion run's weights as a folder that a pipeline of diffusers loads."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from diffpipe.errors import UserError
from diffpipe.evaluation.export_adapter import export_adapter
from diffpipe.experiment.interop.autoencoder_kl import DECODES_ONLY, their_vae, to_autoencoder_kl
from diffpipe.experiment.interop.diffusers_folder import VAE, Labels, network_folder, weights_path, write_configs
from diffpipe.experiment.interop.dit_transformer import DiTTransformer, to_dit_transformer
from diffpipe.experiment.interop.scheduler import to_scheduler
from diffpipe.experiment.interop.unet2d_config import UNet2D, to_unet2d
from diffpipe.experiment.interop.weights_file import save_weights
from diffpipe.experiment.run import Run
from diffpipe.nn.dit import DiTConfig
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import Resolution
from diffpipe.stages.ddpm import DDPM, DENOISER, LATENT_SCALE
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.latents import LatentCodec

_GUIDED_CLASSES = 1000
"""DiTPipeline's label for none, whatever the network's classes."""
_PIXELS = (
    "DiTPipeline decodes latents, and this run diffuses pixels: load its transformer by "
    "DiTTransformer2DModel.from_pretrained(FOLDER, subfolder='transformer'), and the scheduler likewise"
)


def export_diffusers(run: Run, folder: Path, *, merge: bool = False) -> list[str]:
    """Write the folder. Returns sentences on what it does not say. merge: see `export`.

    Raises UserError where diffusers has no class for the run, OSError or SafetensorError where it cannot be written.
    """
    stage = run.experiment.stage
    if not isinstance(stage, DDPMConfig) or not (
        isinstance(stage.network, DiTConfig) or (isinstance(stage.network, UNetConfig) and stage.codec.kind == "pixels")
    ):
        raise UserError(
            f"{run.home} is a {stage.describe()}, for which diffusers has no pipeline; it has one for stage.kind ddpm "
            f"with stage.network.kind dit, or unet on pixels: export --to safetensors"
        )
    channels, resolution, classes = run.shape
    classes, codec = classes if stage.conditional else 0, None
    if stage.codec.kind == "vae":
        codec = cast(LatentCodec, cast(DDPM, run.stage).codec)
        channels, resolution = codec.vae.latent_shape[0], Resolution(*codec.vae.latent_shape[1:])
    outputs = 2 * channels if stage.learned_variance else channels
    if isinstance(stage.network, UNetConfig):
        rows = classes + (stage.label_dropout > 0) if classes else None
        model = UNet2D(stage.network, channels, outputs, resolution, rows)
        network, scheduler = to_unet2d(model), to_scheduler(stage, learned_variance=True)
    else:
        model = DiTTransformer(stage.network, channels, outputs, resolution, classes or 1)
        network, scheduler = to_dit_transformer(model), to_scheduler(stage, learned_variance=False)
    if run.experiment.lora is not None and not merge:
        return export_adapter(run, model, folder)
    names = run.experiment.data.class_names
    labels = Labels(classes, stage.label_dropout, names if len(names) == classes else ())
    vae, tensors = None, {network_folder(model): model.their_tensors(run.nets[DENOISER].state_dict())}
    if codec is not None:
        vae = to_autoencoder_kl(codec.vae.config.network, codec.vae.shape)
        tensors[VAE] = their_vae(codec, cast(LatentScale, run.nets[LATENT_SCALE]))
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, model, network, scheduler, labels, vae)
    for part, weights in tensors.items():
        save_weights(weights, folder / weights_path(part), {"format": "pt"})  # the metadata that diffusers asks for
    notes = _dit_notes(stage, classes) if isinstance(model, DiTTransformer) else _unet_notes(classes)
    if stage.sampler.kind not in ("ancestral", "ddim", "euler"):
        notes.append(f"the scheduler is {scheduler[0]}, where the run samples by {stage.sampler.kind}")
    return notes


def _unet_notes(classes: int) -> list[str]:
    if not classes:
        return []
    return ["DDPMPipeline and DDIMPipeline pass no labels: call the UNet2DModel with class_labels yourself"]


def _dit_notes(stage: DDPMConfig, classes: int) -> list[str]:
    if stage.codec.kind == "pixels":
        return [_PIXELS]
    notes = [DECODES_ONLY]
    if classes not in (0, _GUIDED_CLASSES):
        notes.append(
            f"DiTPipeline guides by the label {_GUIDED_CLASSES}, and the empty label here is {classes}: call it with "
            f"guidance_scale=1"
        )
    if not classes:
        notes.append("DiTPipeline wants labels, and this run has none: call it with class_labels=[0], guidance_scale=1")
    if stage.learned_variance:
        notes.append("DiTPipeline leaves out the learned variance: the scheduler is DDIMScheduler")
    return notes
