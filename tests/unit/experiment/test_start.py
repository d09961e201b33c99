"""The job's call of `start`: the first positions of the training stream, whatever the batch size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from diffpipe.data.index import shard_set
from diffpipe.data.loader.stream import batches
from diffpipe.experiment.start import start_function
from diffpipe.interfaces import Batch
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.support.commands import SHARDS
from tests.support.stage_cases import CASES
from tests.support.toy_stages import Toy


class Starting(Toy):
    def __init__(self, start_samples: int):
        self.start_samples = start_samples
        self.batches: list[Batch] = []
        self.noise: list[torch.Tensor] = []

    def start(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> None:
        self.batches.append(batch)
        self.noise.append(rng.normal("start", ()))
        nets["point"].get_parameter("bias").fill_(batch.images.float().mean())


def test_start_has_the_first_samples_of_the_stream() -> None:
    shards = shard_set.load(str(SHARDS / "train"))
    experiment = CASES["ddpm"].experiment("data.flip=true", "data.batch_size=8")
    stage = Starting(20)
    with Runtime.start("fp32", "cpu") as runtime:
        start = start_function(stage, experiment, shards, runtime)
        assert start is not None
        nets = stage.networks()
        with torch.no_grad():
            start(nets)
    (batch,) = stage.batches
    stream = batches(experiment.data, shards, experiment.seed)
    trained = [next(stream) for _ in range(3)]
    stream.close()
    assert batch.positions.tolist() == list(range(20))
    assert batch.keys == [key for part in trained for key in part.keys][:20]
    assert torch.equal(batch.images, torch.cat([part.images for part in trained])[:20])
    assert torch.equal(stage.noise[0], KeyedRNG(experiment.seed, batch.positions).normal("start", ()))
    assert nets["point"].get_parameter("bias").item() == batch.images.float().mean().item()


def test_a_stage_that_needs_no_data_has_no_start_function() -> None:
    shards, experiment = shard_set.load(str(SHARDS / "train")), CASES["ddpm"].experiment()
    with Runtime.start("fp32", "cpu") as runtime:
        assert start_function(Toy(), experiment, shards, runtime) is None
        assert start_function(Starting(0), experiment, shards, runtime) is None
