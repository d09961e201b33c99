"""A file is refused where networks compute other bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diffpipe.coding.compressed_file import Header
from diffpipe.errors import UserError
from diffpipe.evaluation.same_machine import coded_on, require_same_machine
from diffpipe.train.runtime import Runtime

FILE = Path("images.dpi")


def test_another_machine_or_precision_is_refused(runtime: Runtime) -> None:
    header = Header("vae", "0" * 64, "ema", coded_on(runtime), (1, 8, 8), [], None, None, 0, [])
    require_same_machine(header, runtime, FILE)
    for name in ("precision", "processor", "torch", "device"):
        changed = dataclasses.replace(header, coded_on=header.coded_on | {name: "other"})
        with pytest.raises(UserError, match=rf"images\.dpi: was compressed with {name} other, here "):
            require_same_machine(changed, runtime, FILE)
    half = runtime.in_precision("bf16")
    with pytest.raises(UserError, match="precision float32, here bfloat16"):
        require_same_machine(header, half, FILE)
    assert coded_on(runtime)["precision"] == "float32"
