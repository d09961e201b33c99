"""Checkpoints of several ranks: each loads with any number of ranks and any sharding, bit for bit."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diffpipe.errors import UserError
from diffpipe.run_folder import committed
from diffpipe.train.checkpoint import write as module
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.read import load, open_checkpoint
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.run_states import run_state


class Net(nn.Module):
    """Sizes that 2 and 3 do not divide, one that leaves a rank with nothing, a convolution, and plain 0-d state."""

    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.last = nn.Linear(3, 1)
        self.conv = nn.Conv2d(2, 4, 3)
        self.register_buffer("counted", torch.tensor(3))


def state(strategy: str, world: int, seed: int) -> dict[str, Tensor]:
    """A state to save, drawn from the seed: the same numbers with every strategy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
    if strategy == "fsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    elif strategy == "hsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards")))
    else:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    moments = {name.replace("net", "adam"): tensor * 3 for name, tensor in weights.items()}  # DTensors of DTensors
    return weights | moments | {"adam.step": torch.tensor(float(seed))}


def strategies(world: int) -> list[str]:
    return {1: ["plain"], 2: ["plain", "fsdp", "hsdp"], 3: ["plain", "fsdp"]}[world]


def save_all(folder: str, single: bool = False) -> None:
    if single:
        save_each(Path(folder), Communicator(), Communicator())
        return
    with Runtime.start("fp32", "cpu") as runtime:
        save_each(Path(folder), runtime.comm, runtime.comm.new_group())


def save_each(folder: Path, comm: Communicator, side: Communicator) -> None:
    for strategy in strategies(comm.world):
        with AsyncCheckpointer(folder / f"{strategy}-{comm.world}", CheckpointConfig(), side) as checkpointer:
            checkpointer.save(state(strategy, comm.world, 5), run_state(1))


def load_all(folder: str, single: bool = False) -> list[str]:
    """Load each checkpoint with each strategy of this world size: the tensors that differ."""
    if single:
        return load_each(Path(folder), Communicator())
    with Runtime.start("fp32", "cpu") as runtime:
        return load_each(Path(folder), runtime.comm)


def load_each(folder: Path, comm: Communicator) -> list[str]:
    differences, expected = [], state("plain", 1, 5)
    for saved in sorted(folder.iterdir()):
        checkpoint = open_checkpoint(saved / "step-00000001", comm)
        for strategy in strategies(comm.world):
            target = state(strategy, comm.world, 6)
            load(checkpoint, target, comm)
            for name, tensor in target.items():
                full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if not torch.equal(full, expected[name]):
                    differences.append(f"{saved.name} into {strategy}-{comm.world}: {name}")
    return differences


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_all(str(folder), single=True)
    for world in (2, 3):
        run(world, save_all, str(folder))
    return folder


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_checkpoint_loads_at_any_world_size_and_sharding(saved: Path, world: int) -> None:
    assert len(list(saved.iterdir())) == 6
    differences = run(world, load_all, str(saved)) if world > 1 else [load_all(str(saved), single=True)]
    assert differences == [[]] * world


def shards(saved: Path) -> Iterator[tuple[str, int, dict[str, tuple[int, ...]]]]:
    """Each shard: the strategy and world size that saved it, its bytes, and its tensors' shapes."""
    for shard in sorted(saved.glob("*/step-*/*.safetensors")):
        with safe_open(shard, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            yield shard.parts[-3], sum(file.get_tensor(name).nbytes for name in shapes), shapes


def test_each_rank_writes_its_share_and_no_element_is_written_twice(saved: Path) -> None:
    elements = {name: tensor.numel() for name, tensor in state("plain", 1, 5).items()}
    written: dict[str, Counter[str]] = {}
    loads: dict[str, list[int]] = {}
    for by, size, shapes in shards(saved):
        written.setdefault(by, Counter()).update(
            {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
        )
        loads.setdefault(by, []).append(size)
    assert all(count == elements for count in written.values())
    largest = max(tensor.nbytes for tensor in state("plain", 1, 5).values())
    assert {by: len(load) for by, load in loads.items()} == {by: int(by[-1]) for by in loads}
    assert all(max(load) - min(load) <= largest for by, load in loads.items() if "fsdp" not in by), loads


def fault_on_rank_one(folder: str) -> dict[str, Any]:
    """Two ranks save; the disk of rank 1 is full, and later a shard of rank 0 is emptied."""
    results: dict[str, Any] = {}
    with Runtime.start("fp32", "cpu") as runtime:
        directory, rank = Path(folder), runtime.rank
        checkpointer = AsyncCheckpointer(directory, CheckpointConfig(), runtime.comm.new_group())
        tensors = {str(i): torch.full((1000,), float(i)) for i in range(8)}

        group: Any = dist.group.WORLD
        before = group._get_sequence_number_for_group()
        checkpointer.save(tensors, run_state(1))
        checkpointer.wait()
        results["collectives of the default group"] = group._get_sequence_number_for_group() - before

        checkpointer.save(tensors, run_state(2))
        sums = [runtime.comm.sum(torch.tensor(float(i))).item() for i in range(50)]  # training communicates meanwhile
        checkpointer.wait()
        results["sums"] = sums == [2.0 * i for i in range(50)]

        def full(*_: object) -> None:
            raise module.SafetensorError("No space left on device")

        save_file = module.save_file
        module.save_file = full if rank == 1 else save_file
        checkpointer.save(tensors, run_state(3))
        try:
            checkpointer.wait()
        except UserError as error:
            results["error"] = str(error)
        module.save_file = save_file
        runtime.comm.barrier()
        results["after the fault"] = sorted(p.name for p in directory.iterdir())
        runtime.comm.barrier()

        with checkpointer:  # its end waits for the removal of old checkpoints, which `wait` does not
            checkpointer.save(tensors, run_state(4))
        runtime.comm.barrier()
        results["at the end"] = [p.name for p in committed(directory)]
        if rank == 1:
            next((directory / "step-00000004").glob("rank-00000*")).write_bytes(b"")
        runtime.comm.barrier()
        newest, warnings = recover(directory, runtime.comm)
        assert newest is not None
        results["recovered"] = (newest.step, warnings)
        results["threads"] = [thread.name for thread in threading.enumerate()]
    return results


def test_a_failed_save_on_one_rank_is_an_error_on_all_and_harms_nothing(tmp_path: Path) -> None:
    first, second = run(2, fault_on_rank_one, str(tmp_path))
    assert first == second
    assert first["collectives of the default group"] == 0
    assert first["sums"]
    assert "rank 1: No space left on device" in first["error"]
    assert first["after the fault"] == ["latest", "step-00000001", "step-00000002"]
    assert first["at the end"] == ["step-00000004", "step-00000002"]
    step, [warning] = first["recovered"]
    assert step == 2
    assert "rank-00000.safetensors has 0 bytes instead of" in warning
    assert "damaged-step-00000004" in warning
    assert "checkpointer" not in first["threads"]
