"""The repeated parts of a network, and what is done to each of them: sharding, recomputation, compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Of one block: with gradients and without, in training and not, with frozen parameters, at a few batch sizes.
_VERSIONS = 8


def blocks(net: nn.Module) -> list[nn.Module]:
    """The network's repeated parts in the order of their registration, each once and none inside another.

    A block is an element, with parameters, of a list of modules and holds no such list itself; a list is a ModuleList,
    or a Sequential with elements that are made of modules.
    """
    found = list(dict.fromkeys(_elements(net)))
    inside = {part for block in found for part in block.modules() if part is not block}
    return [block for block in found if block not in inside]


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if any(_is_list(part) for part in child.modules()):
            yield from _elements(child)
        elif _is_list(module) and any(True for _ in child.parameters()):
            yield child


def _is_list(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return any(any(True for _ in child.children()) for child in module)
    return isinstance(module, nn.ModuleList)


def checkpoint_activations(net: nn.Module) -> None:
    """Keep only the inputs of each block for the backward pass, which computes the block anew, its dropout the same.

    In place and without wrappers: names stay as they are. Comes before sharding and before `compile_blocks`. What is
    differentiated once more (`create_graph`) is kept nevertheless.
    """
    for block in blocks(net):
        block.forward = MethodType(_recomputed, block)


def compile_blocks(net: nn.Module, backend: str = "inductor") -> None:
    """Compile each block's forward pass, in place; blocks of a kind share what is compiled.

    Nothing falls back to eager in silence: what cannot be compiled as a whole, or only in too many versions, raises at
    the call. Hooks, those of `fully_shard` among them, stay outside. A compiled block has no second derivative, but
    within `uncompiled`.
    """
    # It would cut a large block in pieces, to reduce the first gradients before the last are there.
    torch._dynamo.config.optimize_ddp = False
    kinds: dict[Any, list[nn.Module]] = {}
    for block in blocks(net):
        kinds.setdefault(block.forward.__func__, []).append(block)
    for forward, alike in kinds.items():
        # Shapes are constants: sizes that vary from block to block would make them all dynamic, and slow. A cache of
        # their own: other networks have blocks of the same code.
        compiled = torch.compile(  # pyright: ignore[reportCallIssue] (its overloads lack the last options)
            forward,
            fullgraph=True,
            dynamic=False,
            isolate_recompiles=True,
            recompile_limit=_VERSIONS * len(alike),
            backend=backend,
        )
        for block in alike:
            block.forward = MethodType(compiled, block)


def uncompiled(*, apply: bool) -> AbstractContextManager[object]:
    """Within it, if `apply`, compiled blocks run as they are written: forward, and so in the backward pass."""
    return torch.compiler.set_stance("force_eager") if apply else nullcontext()


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)
