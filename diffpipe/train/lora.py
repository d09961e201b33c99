"""Low-rank adapters of linear layers, by peft: a network's own weights are frozen, and two small matrices are trained.

A layer with weight W computes W x + (alpha / rank) B A x (Hu et al. 2021, arXiv:2106.09685, section 4.1). B starts at
zero, so that a new run computes what its initial weights do.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.extras import from_extra
from diffpipe.interfaces import Stage
from diffpipe.train.blocks import blocks

BASE = ".base_layer."
"""The part of a tensor's name that peft puts before `weight` or `bias` of an adapted layer."""
LAYER_A, LAYER_B = ".lora_A.default.weight", ".lora_B.default.weight"


class LoRAConfig(Config):
    """Low-rank adapters of the linear layers in the networks' blocks (Hu et al. 2021).

    The weights of run.init are frozen, except for those of init.fresh. It needs peft: pip install 'diffpipe[lora]'.
    """

    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B: the rank of the change of a layer's weight."""
    alpha: float | None = Field(default=None, gt=0)
    """The change of a weight is alpha / rank times B A. null: as rank, a factor of 1."""
    layers: tuple[str, ...] = ()
    """Last parts of the names of linear layers, such as [qkv, out] for attention alone. Empty: all of the blocks."""
    networks: tuple[str, ...] | None = None
    """Networks that get adapters; the others are trained whole. null: all that have linear layers in their blocks."""

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def plain_name(name: str) -> str:
    """The name of a tensor in the network without adapters."""
    return name.replace(BASE, ".")


def adapted_networks(config: LoRAConfig, nets: Mapping[str, nn.Module]) -> list[str]:
    """The names of the networks that get adapters. Raises UserError where they cannot have any."""
    chosen = config.networks or [name for name, net in nets.items() if _linear_layers(net)]
    if unknown := sorted({*chosen} - nets.keys()):
        raise UserError(f"lora.networks names {', '.join(unknown)}, and this stage's networks are {', '.join(nets)}")
    without = [name for name in chosen or nets if not _linear_layers(nets[name])]
    if without:
        named = ", ".join(f"{name} ({type(nets[name]).__name__})" for name in without)
        raise UserError(
            f"lora is for linear layers in the blocks of networks, and there are none in {named}; leave lora out, or "
            f"name others in lora.networks"
        )
    return [*chosen]


def adapted_layers(config: LoRAConfig, name: str, net: nn.Module) -> list[str]:
    """The names of the network's layers that get adapters. Raises UserError, which names the network."""
    linear = _linear_layers(net)
    chosen = [layer for layer in linear if any(f".{layer}".endswith(f".{last}") for last in config.layers or [layer])]
    unknown = [last for last in config.layers if not any(f".{layer}".endswith(f".{last}") for layer in linear)]
    if unknown:
        kinds = dict.fromkeys(re.sub(r"^.*?\.([^.]*[^.\d][^.]*(\.\d+)?)$", r"\1", layer) for layer in linear)
        raise UserError(f"lora.layers names {', '.join(unknown)}, and {name} has {', '.join(sorted(kinds))}")
    return chosen


def _linear_layers(net: nn.Module) -> list[str]:
    within = {module for block in blocks(net) for module in block.modules()}
    return [name for name, module in net.named_modules() if type(module) is nn.Linear and module in within]


def with_adapters(stage: Stage, config: LoRAConfig, fresh: Sequence[str]) -> Stage:
    """The same stage, whose networks have adapters. Parameters that are not to be trained have no `requires_grad`.

    fresh: tensors or modules, by `network.name`, that are trained whole. Raises UserError.
    """
    peft = _peft()

    def networks() -> dict[str, nn.Module]:
        nets = stage.networks()
        for name in adapted_networks(config, nets):
            layers = adapted_layers(config, name, nets[name])
            target = "|".join(map(re.escape, layers))  # a list would match the ends of names
            alpha = config.scale * config.rank
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=target), nets[name]
            )
            for key, parameter in nets[name].named_parameters():
                if any(f"{name}.{plain_name(key)}.".startswith(f"{module}.") for module in fresh):
                    parameter.requires_grad_(True)
        return nets

    adapted: Any = copy.copy(stage)
    adapted.networks = networks
    return adapted


def _peft() -> Any:
    with from_extra("lora"):
        return importlib.import_module("peft")
