"""The adapters of a run with `lora` as a folder that peft and diffusers load into the model of its initial weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.experiment.interop.diffusers_folder import Model, network_folder
from diffpipe.experiment.interop.weights_file import save_weights
from diffpipe.experiment.run import Run
from diffpipe.files import atomic_write
from diffpipe.stages.ddpm import DENOISER

PREFIX = "base_model.model"
"""The first part of the names in a file of peft. diffusers' load_lora_adapter takes it as `prefix`."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def export_adapter(run: Run, model: Model, folder: Path) -> list[str]:
    """Write the adapters of the denoiser. Returns sentences on what the folder does not say.

    Raises UserError where the run has trained what an adapter cannot hold, OSError or SafetensorError where it cannot
    be written.
    """
    lora, fresh = run.experiment.lora, run.experiment.init.fresh
    assert lora is not None, "the caller has asked"
    if fresh:
        raise UserError(
            f"{run.home} has trained {', '.join(fresh)} whole (init.fresh), which an adapter cannot hold; "
            f"export with --merge"
        )
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in run.adapters.items():
        theirs = model.names[name.removeprefix(f"{DENOISER}.")]
        # A layer of ours may be several of theirs. Scaled here, since not every reader takes an alpha.
        for layer, part in zip(theirs, (lora.scale * b).chunk(len(theirs)), strict=True):
            tensors |= {f"{PREFIX}.{layer}.lora_A.weight": a.clone(), f"{PREFIX}.{layer}.lora_B.weight": part}
    layers = sorted({name.removeprefix(f"{PREFIX}.").rpartition(".lora_")[0] for name in tensors})
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "target_modules": layers,
        "base_model_name_or_path": run.experiment.run.init,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(tensors, folder / WEIGHTS, {"format": "pt"})
    atomic_write(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    where = f"the {network_folder(model)} of {run.experiment.run.init}"
    return [f"an adapter of {where}: peft.PeftModel.from_pretrained loads it, and load_lora_adapter, prefix='{PREFIX}'"]
