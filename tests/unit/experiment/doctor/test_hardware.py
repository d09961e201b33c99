"""Precisions, GPUs and environment variables that a job is better without."""

from __future__ import annotations

from typing import Literal

import pytest

from diffpipe.experiment.doctor.hardware import environment, unfit_precision, unused_gpu
from tests.support.stage_cases import CASES


@pytest.mark.parametrize(
    ("precision", "device", "native", "remedy"),
    [
        ("auto", "cpu", False, None),
        ("fp32", "cpu", True, None),
        ("bf16", "cpu", True, None),
        ("bf16", "cuda", True, None),
        ("fp16", "cuda", False, None),
        ("bf16", "cpu", False, "set train.precision=auto, or fp32"),
        ("bf16", "cuda", False, "set train.precision=auto, or fp16 or fp32"),
        ("fp16", "cpu", True, "set train.precision=bf16"),
        ("fp16", "cpu", False, "set train.precision=fp32"),
    ],
)
def test_a_precision_is_held_against_the_device(
    precision: str, device: Literal["cpu", "cuda"], native: bool, remedy: str | None
) -> None:
    finding = unfit_precision(precision, device, native_bf16=native)
    assert (finding and finding.remedy) == remedy


def test_a_gpu_that_torch_does_not_see_is_found() -> None:
    assert unused_gpu("auto", "13.0", present=True, usable=True) is None
    assert unused_gpu("auto", None, present=False, usable=False) is None
    assert unused_gpu("cpu", None, present=True, usable=False) is None
    finding = unused_gpu("auto", None, present=True, usable=False)
    assert finding is not None
    assert finding.remedy == "install a torch for CUDA"
    finding = unused_gpu("auto", "13.0", present=True, usable=False)
    assert finding is not None
    assert "needs a driver for CUDA 13.0" in finding.problem


@pytest.mark.parametrize(
    ("words", "environ", "names"),
    [
        ([], {"CUDA_LAUNCH_BLOCKING": "0", "CUBLAS_WORKSPACE_CONFIG": ":16:8", "NVIDIA_TF32_OVERRIDE": "0"}, []),
        ([], {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "detail"}, ["CUDA", "TORCH_DIST"]),
        ([], {"NVIDIA_TF32_OVERRIDE": "1"}, ["NVIDIA_TF32_OVERRIDE=1"]),
        (["train.tf32=true"], {"NVIDIA_TF32_OVERRIDE": "0"}, ["NVIDIA_TF32_OVERRIDE=0"]),
        (["train.tf32=true"], {"NVIDIA_TF32_OVERRIDE": "1"}, []),
        ([], {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, ["CUBLAS_WORKSPACE_CONFIG"]),
        (["train.deterministic=false"], {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, []),
    ],
)
def test_variables_that_slow_or_change_a_training_are_found(
    words: list[str], environ: dict[str, str], names: list[str]
) -> None:
    findings = [*environment(CASES["ddpm"].experiment(*words), environ)]
    assert len(findings) == len(names)
    for finding, name in zip(findings, names, strict=True):
        assert finding.problem.startswith(name)
        assert finding.remedy == "unset it"
