"""Training: the loop, and its processes, optimizers, averages and checkpoints. It knows no stage in particular."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Python sets `diffpipe.train` to this package as soon as it is imported; the API has a function of that name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("diffpipe.api").train(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
