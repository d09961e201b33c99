"""Limits of networks that are being built: a config can ask for a billion blocks in a few bytes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from diffpipe.errors import UserError

MOST_TENSORS, MOST_VALUES = 50_000, 1 << 40
"""Parameters of the largest network that a config may ask for, and the values in them."""
_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})
_FREE = 1 << 24
"""Values that a tensor may have in any network while it is built: tables that are not stored may be larger than it."""


@contextlib.contextmanager
def limited_networks(refusal: str, *, values: int = MOST_VALUES, tensors: int = MOST_TENSORS) -> Iterator[None]:
    """In the block, networks are built of at most so many values, in so many parameters. Raises UserError, `refusal`.

    A tensor is refused before its memory is taken.
    """
    counted = [0, 0]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            counted[0] += parameter.numel()
            counted[1] += 1
        if counted[0] > values or counted[1] > tensors:
            raise UserError(refusal)

    handle = register_module_parameter_registration_hook(count)
    try:
        with _LimitedTensors(max(values, _FREE), refusal):
            yield
    except (RuntimeError, OverflowError, TypeError) as error:
        if "overflow" not in str(error).lower() and not isinstance(error, OverflowError):
            raise
        raise UserError(refusal) from error
    finally:
        handle.remove()


class _LimitedTensors(TorchFunctionMode):
    """In the block, a new tensor of more than `most` values is refused."""

    def __init__(self, most: int, refusal: str):
        super().__init__()
        self.most, self.refusal = most, refusal

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = args[0] if args and isinstance(args[0], tuple | list) else kwargs.get("size", args)
            if math.prod(n for n in size if isinstance(n, int)) > self.most:
                raise UserError(self.refusal)
        return func(*args, **kwargs)
