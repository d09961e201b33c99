"""The blocks that a network declares, and what is done to each: sharding, recomputation, compilation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffpipe.errors import UserError

# Per block: with and without gradients, in training and in evaluation, with frozen parameters, at a few batch sizes.
_VERSIONS = 8


def blocks(net: nn.Module) -> list[nn.Module]:
    """The network's blocks as it declares them (see `interfaces.Network`); none where it has no such method."""
    # Of the class: many a network has a ModuleList of this name.
    method = getattr(type(net), "blocks", None)
    declared: Any = method(net) if callable(method) else []
    return [*declared]


def require_blocks(nets: Mapping[str, nn.Module], *options: str) -> None:
    """Raise UserError where a network with parameters declares no block, and an option works on blocks."""
    for option, (name, net) in itertools.product(options, nets.items()):
        if any(True for _ in net.parameters()) and not blocks(net):
            raise UserError(
                f"{option} works on the blocks of a network, and the network {name} ({type(net).__name__}) declares "
                f"none; give it a method `blocks` that returns its repeated parts, or leave out {option}"
            )


def checkpoint_activations(net: nn.Module) -> None:
    """Keep only the inputs of each block for the backward pass, which recomputes the block with the same dropout.

    In place and without wrappers: names stay as they are. To be called before sharding and before `compile_blocks`.
    With `create_graph` the activations are kept all the same.
    """
    for block in blocks(net):
        block.forward = MethodType(_recomputed, block)


def compile_blocks(net: nn.Module, backend: str = "inductor") -> None:
    """Compile each block's forward pass, in place; blocks of the same class share the compiled code.

    There is no silent fallback to eager: a block that cannot be compiled as one graph, or needs too many versions,
    raises at the call. Hooks, such as those of `fully_shard`, stay outside. A compiled block has no second derivative,
    except within `uncompiled`.
    """
    # It would cut a large block in pieces, to reduce the first gradients before the last are there.
    torch._dynamo.config.optimize_ddp = False
    by_forward: dict[Any, list[nn.Module]] = {}
    for block in blocks(net):
        by_forward.setdefault(block.forward.__func__, []).append(block)
    for forward, alike in by_forward.items():
        # Shapes are constants: sizes that vary from block to block would make them all dynamic, and slow. A cache of
        # its own: other networks have blocks of the same code.
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
    """If `apply`, compiled blocks run eagerly within it, forward and so also backward."""
    return torch.compiler.set_stance("force_eager") if apply else nullcontext()


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)
