"""EfficientNet-Lite0 up to its pooled features (Tan and Le 2019, arXiv:1905.11946), as functions of its weights."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_BLOCKS = 16
_HALVING = (1, 3, 5, 11)


def lite0_features(tensors: dict[str, Tensor], x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """The network as a function of its weights by name; kernel sizes and groups are those of the weights' shapes."""
    *_, x = _blocks(tensors, x)
    return F.relu6(_unit(tensors, x, "_conv_head", "_bn1")).mean((2, 3))


def lite0_maps(
    tensors: dict[str, Tensor], x: Float[Tensor, "b 3 h w"], smallest: int = 4
) -> list[Float[Tensor, "b c h2 w2"]]:
    """The last map of each resolution, from a half of the image's to a 32nd, but none with a side below `smallest`.

    A smaller map would contain little but the padding.
    """
    maps: list[Tensor] = []
    for h in _blocks(tensors, x):
        if min(h.shape[2:]) < smallest:
            break
        if maps and maps[-1].shape[2:] == h.shape[2:]:
            maps.pop()
        maps.append(h)
    return maps


def _blocks(tensors: dict[str, Tensor], x: Tensor) -> Iterator[Tensor]:
    """The output of each block in turn."""
    x = F.relu6(_unit(tensors, x, "_conv_stem", "_bn0", stride=2))
    for i in range(_BLOCKS):
        block, stride = f"_blocks.{i}", 2 if i in _HALVING else 1
        h = F.relu6(_unit(tensors, x, f"{block}._expand_conv", f"{block}._bn0")) if i > 0 else x
        h = F.relu6(_unit(tensors, h, f"{block}._depthwise_conv", f"{block}._bn1", stride))
        h = _unit(tensors, h, f"{block}._project_conv", f"{block}._bn2")
        x = x + h if h.shape == x.shape else h
        yield x


def _unit(tensors: dict[str, Tensor], x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
    """Convolution, then normalization by the statistics of the training set."""
    weight = tensors[f"{conv}.weight"]
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(_pad_same(x, weight.shape[-1], stride), weight, stride=stride, groups=groups)
    scale, shift, mean, var = (tensors[f"{norm}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
    return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)


def _pad_same(x: Float[Tensor, "b c h w"], kernel: int, stride: int) -> Float[Tensor, "b c h2 w2"]:
    """TensorFlow's SAME padding, which the weights were trained with: the odd zero goes to the right and the bottom."""
    h, w = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
