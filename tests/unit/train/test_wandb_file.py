"""The offline file of Weights & Biases: records that cross its blocks, and the end that a killed job leaves."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from diffpipe.train.wandb_file import last_step, records

if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed; pip install 'diffpipe[trackers]'", allow_module_level=True)


def log_file(contents: list[bytes]) -> bytes:
    """The format that doc/log_format.md of LevelDB describes, after the seven bytes of the file's name and version."""
    log = b":W&B\xe1\xbe\x00"
    for content in contents:
        begins, rest = True, content
        while begins or rest:
            room = 32768 - len(log) % 32768
            if room < 7:
                log += bytes(room)
                room = 32768
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[begins, not rest]
            log += struct.pack("<IHB", 0, len(part), kind) + part
            begins = False
    return log


def history(step: int, size: int) -> bytes:
    from wandb.proto.wandb_internal_pb2 import HistoryRecord, HistoryStep, Record  # pyright: ignore

    return Record(history=HistoryRecord(step=HistoryStep(num=step)), uuid="x" * size).SerializeToString()


def test_the_last_step_is_that_of_the_last_whole_record(tmp_path: Path) -> None:
    assert last_step(tmp_path) == -1
    contents = [history(step, size) for step, size in enumerate((10, 32768, 5, 100_000, 32740, 20, 7))]
    log = log_file(contents)
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(log)
    assert [record.history.step.num for record in records(file)] == [*range(7)]
    assert [len(record.uuid) for record in records(file)] == [10, 32768, 5, 100_000, 32740, 20, 7]
    assert last_step(tmp_path) == 6
    gap = len(log) - len(contents[-1]) - 7 - len(contents[-2])  # in the last record but one, as a full disk leaves it
    file.write_bytes(log[:gap] + b"\xff" * len(contents[-2]) + log[gap + len(contents[-2]) :])
    assert last_step(tmp_path) == 4
    for lost, step in ((1, 5), (len(contents[-1]) + 6, 5), (len(log) - 7, -1), (len(log) - 20, -1)):
        file.write_bytes(log[: len(log) - lost])
        assert last_step(tmp_path) == step
