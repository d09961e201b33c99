"""`python -m tests.integration.broken_resume …` is `python -m diffpipe …` with the resume broken as BROKEN says.

stream: it goes on from one batch too far on. moments: the optimizer's are lost. resharding: half of an average is lost
when another number of processes saved it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from diffpipe.__main__ import main
from diffpipe.experiment import job
from diffpipe.train import checkpoint as checkpoints


def _break(how: str) -> None:
    load, batches = checkpoints.load, job.batches

    def too_far(data: Any, *args: Any, start: int, **settings: Any) -> Any:
        return batches(data, *args, start=start + (data.batch_size if start else 0), **settings)

    def without_moments(checkpoint: Any, tensors: Any, *args: Any, **options: Any) -> None:
        load(checkpoint, tensors, *args, **options)
        for name, tensor in tensors.items():
            if name.endswith(".exp_avg"):
                tensor.zero_()

    def badly_resharded(checkpoint: Any, tensors: Any, *args: Any, **options: Any) -> None:
        load(checkpoint, tensors, *args, **options)
        saved_by = len([*checkpoint.path.glob("*.safetensors")])
        if saved_by != int(os.environ.get("WORLD_SIZE", "1")):
            average = next(tensor for name, tensor in tensors.items() if name.startswith("ema.") and tensor.ndim > 1)
            average[len(average) // 2 :] = 0

    broken: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "stream": (job, "batches", too_far),
        "moments": (checkpoints, "load", without_moments),
        "resharding": (checkpoints, "load", badly_resharded),
    }
    setattr(*broken[how])


if __name__ == "__main__":
    _break(os.environ["BROKEN"])
    sys.exit(main())
