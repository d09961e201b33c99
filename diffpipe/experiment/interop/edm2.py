"""State dicts with the names of EDM2's network (Karras et al. 2024) as our edm2 network and learned weighting.

    theirs, under unet.                          ours
    emb_fourier.freqs, .phases                   fourier.frequencies, .phases
    emb_noise, emb_label                         noise, label
    enc.{r}x{r}_conv                             stem
    enc.{r}x{r}_down, enc.{r}x{r}_block{k}       encoder.{i}, counted through all levels
    dec.{r}x{r}_in0, _in1, _up, _block{k}        decoder.{i}, counted likewise
    out_conv, out_gain                           out, out_gain
    conv_res0, conv_res1, conv_skip              conv1, conv2, skip
    emb_linear, emb_gain, attn_qkv, attn_proj    emb, emb_gain, qkv, out

    logvar_fourier.freqs, .phases                log_variance: frequencies, phases
    logvar_linear.weight, with unit magnitude    log_variance: out.weight

r: the height and width of a level. Gains are numbers there and vectors of one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from diffpipe.config import validate
from diffpipe.errors import UserError
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.nn.edm2 import EDM2Config
from diffpipe.nn.magnitude_preserving import normalize

_STEM = re.compile(r"unet\.enc\.(\d{1,5})x\1_conv\.weight")
_NOISE, _LABEL, _OUT = "unet.emb_noise.weight", "unet.emb_label.weight", "unet.out_conv.weight"
_BLOCK = {
    "emb_gain": "emb_gain",
    "conv1.weight": "conv_res0.weight",
    "emb.weight": "emb_linear.weight",
    "conv2.weight": "conv_res1.weight",
    "skip.weight": "conv_skip.weight",
    "qkv.weight": "attn_qkv.weight",
    "out.weight": "attn_proj.weight",
}
_LOG_VARIANCE = {
    "frequencies": "logvar_fourier.freqs",
    "phases": "logvar_fourier.phases",
    "out.weight": "logvar_linear.weight",
}


class EDM2Weights(NamedTuple):
    """A state dict's network as we have it, with the heads and balances of the default config: no shape tells them.

    learned_weighting: whether it has the log-variance of the loss.
    """

    network: EDM2Config
    channels: int
    out_channels: int
    resolution: int
    classes: int
    learned_weighting: bool

    @property
    def names(self) -> dict[str, str]:
        """Our network's tensors with their names, those that some blocks lack included."""
        sizes = [self.resolution >> level for level in range(len(self.network.channel_mult))]
        names = {
            "fourier.frequencies": "unet.emb_fourier.freqs",
            "fourier.phases": "unet.emb_fourier.phases",
            "noise.weight": _NOISE,
            "label.weight": _LABEL,
            "stem.weight": f"unet.enc.{_square(sizes[0])}_conv.weight",
            "out.weight": _OUT,
            "out_gain": "unet.out_gain",
        }
        encoder, decoder = [], [f"{_square(sizes[-1])}_in0", f"{_square(sizes[-1])}_in1"]
        for level, size in enumerate(sizes):
            encoder += [f"{_square(size)}_down"] if level else []
            encoder += [f"{_square(size)}_block{k}" for k in range(self.network.blocks)]
        for size in sizes[::-1]:
            decoder += [f"{_square(size)}_up"] if size != sizes[-1] else []
            decoder += [f"{_square(size)}_block{k}" for k in range(self.network.blocks + 1)]
        for side, blocks in (("encoder", encoder), ("decoder", decoder)):
            for i, block in enumerate(blocks):
                names |= {f"{side}.{i}.{ours}": f"unet.{side[:3]}.{block}.{theirs}" for ours, theirs in _BLOCK.items()}
        return names


def is_edm2(weights: WeightsFile) -> bool:
    return any(_STEM.fullmatch(name) for name in weights.shapes)


def from_edm2(weights: WeightsFile) -> EDM2Weights:
    """The network of a state dict. Raises UserError where ours does not compute it."""
    shapes, where = weights.shapes, str(weights.path)
    stem = max((name for name in shapes if _STEM.fullmatch(name)), key=_size)
    resolution = _size(stem)
    widths, attention, size, blocks = [], [], resolution, 0
    while size and (first := f"unet.enc.{_square(size)}_block0.conv_res0.weight") in shapes:
        widths.append(weights.shape(first, 4)[0])
        attention += [size] if f"unet.enc.{_square(size)}_block0.attn_qkv.weight" in shapes else []
        size //= 2
    while f"unet.enc.{_square(resolution)}_block{blocks}.conv_res0.weight" in shapes:
        blocks += 1
    if not widths or _OUT not in shapes:
        raise UserError(f"{where}: it lacks unet.enc.{_square(resolution)}_block0 or unet.out_conv, as no edm2 network")
    channels, inputs = weights.shape(stem, 4)[:2]
    if any(width % channels for width in widths):
        raise UserError(
            f"{where}: its levels are {widths} wide, and diffpipe's edm2 has multiples of the first layer's {channels}"
        )
    tree = {
        "kind": "edm2",
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks": blocks,
        "attention": attention,
    }
    return EDM2Weights(
        validate(EDM2Config, tree, where),
        inputs - 1,  # without the constant channel
        weights.shape(_OUT, 4)[0],
        resolution,
        weights.shape(_LABEL, 2)[1] if _LABEL in shapes else 0,
        "logvar_linear.weight" in shapes,
    )


def edm2_tensors(
    weights: WeightsFile,
    model: EDM2Weights,
    network: Mapping[str, Tensor],
    log_variance: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of our two networks, the second empty where there is none.

    network, log_variance: our networks' tensors, without values. Raises UserError where the file has others.
    """
    names = model.names
    if network.keys() - names.keys():
        raise UserError(f"{weights.path}: stage.network has other blocks than its names tell; leave those keys out")
    pairs = [(names[key], tensor) for key, tensor in network.items()]
    pairs += [(_LOG_VARIANCE[key], tensor) for key, tensor in (log_variance or {}).items()]
    shapes = {name: () if name.endswith("_gain") else tuple(tensor.shape) for name, tensor in pairs}
    if model.learned_weighting and log_variance is None:  # the user has another weighting: it is left out
        shapes |= {name: weights.shapes[name] for name in _LOG_VARIANCE.values() if name in weights.shapes}
    weights.require(shapes, "the edm2 network that its names tell")
    theirs = weights.read()
    ours = {key: theirs[names[key]].reshape(tensor.shape) for key, tensor in network.items()}
    weighting = {key: theirs[_LOG_VARIANCE[key]] for key in log_variance or {}}
    if weighting:
        weighting["out.weight"] = normalize(weighting["out.weight"], dims=[1])
    return ours, weighting


def _square(size: int) -> str:
    return f"{size}x{size}"


def _size(stem: str) -> int:
    match = _STEM.fullmatch(stem)
    assert match is not None, "the name was matched before"
    return int(match[1])
