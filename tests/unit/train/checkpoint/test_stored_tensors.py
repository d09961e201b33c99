"""Tensors in a checkpoint are whole, of the dtype that a save writes, and counted as its step says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

from diffpipe.errors import UserError
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.format import describe
from diffpipe.train.checkpoint.read import load, open_checkpoint
from diffpipe.train.checkpoint.stored_tensors import require_stored
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state

ALONE = Communicator()
STEP = 6
TENSORS = {"w": torch.arange(24.0).reshape(6, 4), "optimizer.net.w.step": torch.tensor(6.0)}

Box = tuple[tuple[int, ...], tuple[int, ...]]


def stored(boxes: Sequence[Box]) -> TensorStorageMetadata:
    """Metadata of a tensor in chunks, each with its offsets and its sizes, as torch's reader makes it."""
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
    ends = [[a + n for a, n in zip(offsets, sizes, strict=True)] for offsets, sizes in boxes]
    size = torch.Size(map(max, zip(*ends, strict=True)))
    return TensorStorageMetadata(TensorProperties(dtype=torch.float32), size, chunks)


def is_whole(boxes: Sequence[Box]) -> bool:
    metadata = stored(boxes)
    try:
        require_stored(Path("x"), {"w": metadata}, {"w": torch.zeros(metadata.size)})
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("boxes", "whole"),
    [
        ([((), ())], True),
        ([((), ()), ((), ())], False),
        ([((0,), (0,))], True),
        ([((0, 0), (3, 4)), ((3, 0), (3, 4))], True),
        ([((3, 0), (3, 4)), ((0, 0), (2, 4))], False),  # row 2 is missing
        ([((0, 0), (4, 4)), ((3, 0), (3, 4))], False),  # row 3 comes twice
        ([((0, 0), (3, 4)), ((2, 0), (2, 4)), ((5, 0), (1, 4))], False),  # both, and the volumes add up
        ([((0, 0), (6, 2)), ((0, 2), (6, 2))], True),
        ([((0, 0), (3, 2)), ((0, 2), (3, 2)), ((3, 0), (3, 2)), ((3, 2), (3, 2))], True),
        ([((0, 0), (3, 2)), ((0, 2), (3, 2)), ((3, 0), (3, 2)), ((2, 2), (3, 2))], False),
    ],
)
def test_chunks_fill_a_tensor_each_place_once(boxes: list[Box], whole: bool) -> None:
    assert [is_whole(order) for order in itertools.permutations(boxes)] == [whole] * len(
        [*itertools.permutations(boxes)]
    )


def test_many_shards_along_the_first_dimension_are_checked_quickly() -> None:
    boxes: list[Box] = [((i, 0), (1, 4)) for i in range(20_000)]
    assert is_whole(boxes)
    assert not is_whole([*boxes[:777], *boxes[778:]])


def forged(folder: Path, tensors: dict[str, Tensor], offsets: dict[str, list[int]]) -> Path:
    """A checkpoint whose manifest vouches for these tensors in the place of those that were saved."""
    with AsyncCheckpointer(folder, CheckpointConfig(), ALONE) as checkpointer:
        checkpointer.save(TENSORS, run_state(STEP))
    path = folder / f"step-{STEP:08d}"
    metadata = json.dumps({name: {SAVED_OFFSETS_KEY: at} for name, at in offsets.items()})
    save_file(tensors, path / "rank-00000.safetensors", {CUSTOM_METADATA_KEY: metadata})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: describe(path / name).model_dump() for name in manifest["files"]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


WHOLE = {"w": [0, 0], "optimizer.net.w.step": []}


@pytest.mark.parametrize(
    ("changes", "offsets", "complaint"),
    [
        ({"w": TENSORS["w"][3:].clone()}, WHOLE | {"w": [3, 0]}, r"w is stored in part only, or twice: .* 12 of 24"),
        ({"w": TENSORS["w"]}, WHOLE | {"w": [-1, 0]}, "has shape|in part only"),
        ({"w": TENSORS["w"].double()}, WHOLE, r"w is stored as torch\.float64, and a save stores it as torch\.float32"),
        ({"w": TENSORS["w"].half()}, WHOLE, r"w is stored as torch\.float16"),
        ({"w": TENSORS["w"].T.contiguous()}, WHOLE, r"w has shape \[4, 6\]"),
        ({}, {"optimizer.net.w.step": []}, "not what diffpipe writes"),
        ({}, WHOLE | {"w": "00"}, "not what diffpipe writes|another model"),
        *(
            ({"optimizer.net.w.step": torch.tensor(value)}, WHOLE, rf"step is {value:g}, .* whole number from 0 to 6")
            for value in (-3.0, float("nan"), 6.5, 7.0, float("inf"))
        ),
    ],
)
def test_what_a_save_does_not_write_is_refused_before_anything_is_changed(
    tmp_path: Path, changes: dict[str, Tensor], offsets: dict[str, list[int]], complaint: str
) -> None:
    checkpoint = open_checkpoint(forged(tmp_path, TENSORS | changes, offsets), ALONE)
    target = {name: torch.full_like(tensor, 42) for name, tensor in TENSORS.items()}
    with pytest.raises(UserError, match=complaint):
        load(checkpoint, target, ALONE)
    assert all((tensor == 42).all() for tensor in target.values())


def test_two_phases_that_share_an_optimizer_update_it_twice_in_a_step(tmp_path: Path) -> None:
    changes = {"optimizer.net.w.step": torch.tensor(12.0)}
    checkpoint = open_checkpoint(forged(tmp_path, TENSORS | changes, WHOLE), ALONE)
    target = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    load(checkpoint, target, ALONE, updates=2)
    assert target["optimizer.net.w.step"] == 12


@pytest.mark.parametrize("step", ["-3", "NaN", "6.5", '"6"', "7", "1e400", "[" * 9999])
def test_a_state_of_another_step_is_refused_in_one_line(tmp_path: Path, step: str) -> None:
    path = forged(tmp_path, TENSORS, WHOLE)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 6', f'"step": {step}'))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = describe(path / "state.json").model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"state\.json: its hash is right, but it is not what diffpipe writes"
    ) as caught:
        open_checkpoint(path, ALONE)
    assert len(str(caught.value)) < 600


def test_a_loss_scale_that_is_missing_is_told_from_another_model() -> None:
    for name in ("optimizer.net.scale", "optimizer.net.growth_tracker"):
        with pytest.raises(
            UserError, match=r"^x was trained without fp16.*resume it with train\.precision=bf16 or fp32"
        ):
            require_stored(Path("x"), {}, {name: torch.ones(())})
    with pytest.raises(UserError, match=r"^x is a checkpoint of another model: net\.scale is missing"):
        require_stored(Path("x"), {}, {"net.scale": torch.ones(())})
