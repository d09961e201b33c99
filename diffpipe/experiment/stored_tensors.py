"""The tensors of networks in a checkpoint: their own, or frozen ones and adapters, which are merged into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator
from diffpipe.train.lora import BASE, LAYER_A, LAYER_B, LoRAConfig, plain_name

Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""A and B of each adapted layer, by `network.layer`."""


def blank_tensors(found: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the networks without adapters, by `network.tensor`, without values. Raises UserError."""
    held = {name.removeprefix("net."): t for name, t in found.tensors().items() if name.startswith("net.")}
    return {plain_name(name): t for name, t in held.items() if not name.endswith((LAYER_A, LAYER_B))}


@torch.no_grad()
def load_networks(
    found: Checkpoint,
    tensors: Mapping[str, Tensor],
    part: str,
    load: Callable[[Mapping[str, Tensor]], None],
    lora: LoRAConfig | None,
) -> Adapters:
    """Set tensors of networks without adapters, and return what has been merged into them. Raises UserError.

    tensors: by `network.tensor`. part: the checkpoint's, `net` or that of an average; parameters that are not trained
    are in `net` alone. load: sets tensors from that part. lora: of the run's config.
    """
    if lora is None:
        load(tensors)
        return {}
    held = found.tensors()
    stored = {_stored_name(name, held): tensor for name, tensor in tensors.items()}
    frozen = {name: t for name, t in stored.items() if f"{part}.{name}" not in held}
    layers = [name.removesuffix(f"{BASE}weight") for name in stored if name.endswith(f"{BASE}weight")]
    adapters = {layer: (_blank(held, layer + LAYER_A), _blank(held, layer + LAYER_B)) for layer in layers}
    own = {name: t for name, t in stored.items() if name not in frozen}
    for layer, pair in adapters.items():
        own |= {f"{layer}{end}": tensor for end, tensor in zip((LAYER_A, LAYER_B), pair, strict=True)}
    load_part(found, "net", frozen)
    load(own)
    for layer, (a, b) in adapters.items():
        weight = stored[f"{layer}{BASE}weight"]
        weight.copy_(weight.double() + lora.scale * (b.double() @ a.double()).to(weight.device))
    return adapters


def load_part(found: Checkpoint, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Set tensors, by `network.tensor`, from a part of the checkpoint. Raises UserError."""
    checkpoints.load(found, {f"{part}.{name}": tensor for name, tensor in tensors.items()}, Communicator())


def _blank(held: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor to load; loading says what is missing."""
    return torch.empty(held[f"net.{name}"].shape if f"net.{name}" in held else 0)


def _stored_name(name: str, held: Mapping[str, Tensor]) -> str:
    module, _, leaf = name.rpartition(".")
    adapted = f"{module}{BASE}{leaf}"
    return adapted if f"net.{adapted}" in held else name
