"""Feature maps for a perceptual loss: networks with a name and a hash, differentiable in the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.metrics.features import find_network, hashed, lite0_weights
from diffpipe.metrics.lite0 import lite0_maps
from diffpipe.resolution import Resolution

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]


def build_feature_maps(
    name: str, resolution: Resolution, *, device: str | torch.device = "cpu"
) -> tuple[FeatureMaps, str]:
    """`efficientnet_lite0` or a plug-in's network, frozen, and its sha256.

    It maps float32 images [b 3 h w] in [-1, 1], of `resolution`, to a list of feature maps [b c h w]. Images are not
    resized. Raises UserError for an unknown name, and for a network that returns something else.
    """
    if name == "efficientnet_lite0":
        network, sha256 = _lite0(device)
    else:
        network, sha256 = hashed(find_network(name, ("efficientnet_lite0",)), device)
        if isinstance(network, nn.Module):
            network.requires_grad_(False)
    with torch.no_grad():
        _check(name, network(torch.zeros(2, 3, *resolution, device=device)))
    return network, sha256


def _lite0(device: str | torch.device) -> tuple[FeatureMaps, str]:
    tensors, sha256 = lite0_weights(device)

    def network(images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        x = images.contiguous(memory_format=torch.channels_last)
        return lite0_maps(tensors, (127.5 * (x + 1) - 127) / 128)

    return network, sha256


def _check(name: str, maps: Any) -> None:
    sound = isinstance(maps, list | tuple) and all(
        isinstance(m, Tensor) and m.ndim == 4 and m.is_floating_point() and len(m) == 2 for m in maps
    )
    if not sound or not maps:
        raise UserError(
            f"feature network {name} gives no list of float feature maps [b c h w] of the images of this run; "
            f"give another, or larger images"
        )
