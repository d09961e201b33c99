"""The runtime of one process: its precision, its memory format, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train.config import TrainConfig
from diffpipe.train.runtime import Runtime, resolve_precision
from diffpipe.train.tracker_kinds import TrackedRun
from tests.support.toy_stages import batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_bf16_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for capability, expected in (("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx2", "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capability=capability: {capability: True})
        assert resolve_precision("auto", CPU) == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # as ATEN_CPU_CAPABILITY=avx2 has it
    assert resolve_precision("auto", CPU) == "fp32"
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert resolve_precision("auto", CUDA) == expected
    assert resolve_precision("fp16", CPU) == "fp16"


def test_autocast_computes_in_the_precision_and_parameters_stay_float32(runtime: Runtime) -> None:
    net, x = runtime.place(nn.Linear(2, 2)), torch.ones(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with dataclasses.replace(runtime, dtype=dtype).autocast():
            assert net(x).dtype == dtype
    assert net.weight.dtype == torch.float32


def test_networks_and_images_share_a_memory_format(runtime: Runtime) -> None:
    for dtype, expected in ((torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)):
        runtime_of_dtype = dataclasses.replace(runtime, dtype=dtype)
        images = batch(range(2)).images.expand(-1, 3, -1, -1).contiguous()
        placed = runtime_of_dtype.to_device(batch(range(2))._replace(images=images))
        assert placed.images.is_contiguous(memory_format=expected)
        assert torch.equal(placed.images, images)
        weight = runtime_of_dtype.place(nn.Conv2d(3, 3, 3)).weight
        assert weight.is_contiguous(memory_format=expected)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device is cuda, and torch sees no CUDA device here; give cpu or auto"):
        Runtime.start("fp32", "cuda")


def test_a_tracker_gets_the_logged_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime.start("fp32", "cpu", tmp_path) as runtime:
        runtime.trackers.start(TrackedRun(tmp_path, "project", "name", 0), {"seed": 3}, pytest.fail)
        values = []
        (tracker,) = runtime.trackers.running
        monkeypatch.setattr(tracker.handle, "log", lambda row, step, **_: values.append((row, step)))
        runtime.trackers.log({"loss": 0.5}, step=7)
    assert values == [({"loss": 0.5}, 7)]


def test_algorithms_are_deterministic_unless_the_config_says_otherwise() -> None:
    for deterministic in (False, True):
        with Runtime.start("fp32", "cpu", deterministic=deterministic):
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            assert torch.backends.cudnn.benchmark != deterministic
    with Runtime.start("fp32", "cpu"):
        assert torch.are_deterministic_algorithms_enabled()
    assert TrainConfig(steps=1).deterministic
    assert not TrainConfig(steps=1).tf32


def test_a_launcher_option_does_not_allow_tf32() -> None:
    """accelerate sets torch's switch for matrix products under --dynamo_backend."""
    torch.backends.cuda.matmul.allow_tf32 = True
    with Runtime.start("fp32", "cpu"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("place", ["start", "first value"])
def test_a_tracker_without_a_disk_never_stops_a_run(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warnings = []
    with Runtime.start("fp32", "cpu", tmp_path) as runtime:
        if place == "start":
            (tmp_path / "tensorboard").write_text("a file in its place")
        runtime.trackers.start(TrackedRun(tmp_path, "project", "name", 0), {"seed": 3}, warnings.append)
        if place != "start":
            assert warnings == []

            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(runtime.trackers.running[0].handle, "log", full)
        for step in (7, 8):
            runtime.trackers.log({"loss": 0.5}, step)
        (sentence,) = warnings
        assert sentence.startswith("the tracker tensorboard gets no values from here on, and the run goes on: ")
    assert capsys.readouterr().err == ""


def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        with Runtime.start("fp32", "cpu"):
            now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert now == min(hard, 1 << 20) or hard == resource.RLIM_INFINITY


def test_precisions_and_devices_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="precision 'fp64' is unknown; give auto, fp32, bf16, fp16"):
        inspect.unwrap(resolve_precision)("fp64", torch.device("cpu"))  # without the checks of types that tests add
    with pytest.raises(UserError, match="device 'tpu' is unknown; give auto, cpu, cuda"):
        inspect.unwrap(Runtime.start.__func__)(Runtime, "fp32", "tpu")  # pyright: ignore
