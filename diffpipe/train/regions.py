"""The repeated parts of a network, and what is done to each of them: sharding, recomputation, compilation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


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
