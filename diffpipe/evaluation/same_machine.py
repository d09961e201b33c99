"""The machine that compressed a file: a network's output has other bits elsewhere, so others refuse the file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from diffpipe.coding.compressed_file import Header
from diffpipe.errors import UserError
from diffpipe.train.runtime import Runtime


def coded_on(runtime: Runtime) -> dict[str, Any]:
    """The parts of this machine that the bits of a network's output depend on."""
    if runtime.device.type == "cuda":
        libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        processor = torch.cuda.get_device_name(runtime.device)
    else:
        libraries = {}
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        processor = f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": runtime.device.type,
        "processor": processor,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
        **libraries,
    }


def require_same_machine(header: Header, runtime: Runtime, where: Path) -> None:
    """Raise UserError where a network's output may have other bits here than where the file was made."""
    here = coded_on(runtime)
    differing = [
        f"{name} {header.coded_on.get(name)}, here {here.get(name)}"
        for name in sorted(header.coded_on.keys() | here.keys())
        if header.coded_on.get(name) != here.get(name)
    ]
    if differing:
        raise UserError(
            f"{where}: was compressed with {'; '.join(differing)}, where networks compute other bits; decompress where "
            f"it was compressed"
        )
