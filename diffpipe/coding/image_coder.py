"""The protocol of a stage that codes images by its likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.coding.message import Message
from diffpipe.interfaces import Stage


@runtime_checkable
class ImageCoder(Protocol):
    """Images as bits, by a model of them. Encoder and decoder call the networks on tensors of the same shapes.

    images_before: how many images are encoded before each image of a group, whose bits draw that one's noise (bits-back
    coding). So the first groups are small, and take few initial bits. 0: it pops nothing before it has pushed.
    """

    images_before: int

    def encode(self, message: Message, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        """Push the images."""
        ...

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> UInt8[Tensor, "b c h w"]:
        """Pop n images. It leaves the message as it was before they were encoded."""
        ...


@runtime_checkable
class Compresses(Protocol):
    """A stage that codes images losslessly, in about as many bits as its likelihood says."""

    def image_coder(self, nets: Mapping[str, nn.Module]) -> ImageCoder:
        """The coder of its images. nets: without wrappers, in evaluation mode, in float32.

        Raises UserError where the stage, as it is configured, has no such code.
        """
        ...


@runtime_checkable
class Strides(Protocol):
    """A stage whose likelihood is that of a chain, which may have fewer steps.

    chain_steps: their number; None: all that there are.
    """

    chain_steps: int | None

    def strided(self, steps: int | None) -> Stage:
        """The same stage, whose likelihood and code are those of a chain of so many steps; None: of all.

        Raises UserError for fewer than 2 steps or more than there are.
        """
        ...
