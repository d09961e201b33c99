"""The device of a job, the precision that it computes in, and what the environment makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding

_SLOW = {
    "CUDA_LAUNCH_BLOCKING": ("1", "the host waits for every operation on the GPU"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "every collective is checked by another one"),
}


def unfit_precision(precision: str, device: Literal["cpu", "cuda"], *, native_bf16: bool) -> Finding | None:
    """A finding on a precision that the device does not compute in by itself. native_bf16: whether it has bf16."""
    if precision == "bf16" and not native_bf16:
        what = "GPU" if device == "cuda" else "processor"
        better = "fp16 or fp32" if device == "cuda" else "fp32"
        return Finding(
            "warning",
            f"train.precision is bf16, and this {what} has no arithmetic of its own for it: it is slower than fp32; "
            f"set train.precision=auto, or {better}",
        )
    if precision == "fp16" and device == "cpu":
        better = "bf16" if native_bf16 else "fp32"
        return Finding(
            "warning",
            f"train.precision is fp16, which is for GPUs: on a CPU it is slow, and its loss has to be scaled; set "
            f"train.precision={better}",
        )
    return None


def unused_gpu(device: str, torch_cuda: str | None, *, present: bool, usable: bool) -> Finding | None:
    """A finding where the machine has an NVIDIA GPU and torch does not see it.

    device: `train.device`. torch_cuda: the version of CUDA that torch was built for, or None. present: whether the
    machine has a GPU. usable: whether torch sees one.
    """
    if device == "cpu" or not present or usable:
        return None
    why = (
        "this torch is built for CPUs alone"
        if torch_cuda is None
        else f"this torch needs a driver for CUDA {torch_cuda}"
    )
    remedy = "install a torch for CUDA" if torch_cuda is None else "update the driver, or look at CUDA_VISIBLE_DEVICES"
    return Finding("warning", f"the machine has an NVIDIA GPU, and torch does not see it: {why}; {remedy}")


def environment(experiment: Experiment, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on environment variables that make a training slow, or other than its config says."""
    for name, (slow, why) in _SLOW.items():
        if environ.get(name, "").upper() == slow:
            yield Finding("warning", f"{name}={environ[name]}: {why}, which is slow; unset it")
    override = environ.get("NVIDIA_TF32_OVERRIDE")
    if override is not None and (override != "0") != experiment.train.tf32:
        yield Finding(
            "warning",
            f"NVIDIA_TF32_OVERRIDE={override} decides on TF32 instead of train.tf32, and for scores, too; unset it",
        )
    workspace = environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if experiment.train.deterministic and workspace not in (":4096:8", ":16:8"):
        yield Finding(
            "warning",
            f"CUBLAS_WORKSPACE_CONFIG={workspace}, and train.deterministic needs :4096:8 or :16:8 for the same bits "
            "after a resume; unset it",
        )
