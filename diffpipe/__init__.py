"""Train image generators from WebDataset shards on one CPU or many GPU nodes, and measure what they make.

The Python API is imported when it is first used: `import diffpipe` alone imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpipe.api import Callback, LoadedRun, decompress, import_run, load, load_plugin, score, stream, train

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "LoadedRun",
    "__version__",
    "decompress",
    "import_run",
    "load",
    "load_plugin",
    "score",
    "stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("diffpipe.api"), name)
    raise AttributeError(f"module 'diffpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
