"""Low-rank adapters: which layers get them, what is trained, and what training leaves as it was."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig, PowerEMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.lora import LoRAConfig, adapted_layers, adapted_networks, plain_name, with_adapters
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.randomized import randomized
from tests.support.stage_cases import CASES, real_batch

DIT = "ddpm, dit, flow"
IN_BLOCKS = ["modulation", "qkv", "out", "mlp.0", "mlp.2"]


def adapted(case: str = DIT, config: LoRAConfig | None = None, fresh: Sequence[str] = ()) -> dict[str, nn.Module]:
    return with_adapters(CASES[case].stage(), config or LoRAConfig(rank=2), fresh).networks()


def test_the_linear_layers_of_the_blocks_get_adapters_and_nothing_else_is_trained() -> None:
    net = adapted()["denoiser"]
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    layers = [f"layers.{i}.{layer}" for i in range(2) for layer in IN_BLOCKS]
    assert trained == [f"{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"]
    plain = CASES[DIT].stage().networks()["denoiser"].state_dict()
    held = {plain_name(name) for name in net.state_dict() if ".lora_" not in name}
    assert held == plain.keys()


def test_layers_are_chosen_by_the_last_parts_of_their_names() -> None:
    net = CASES[DIT].stage().networks()["denoiser"]
    assert adapted_layers(LoRAConfig(layers=("qkv", "mlp.0")), "denoiser", net) == [
        f"layers.{i}.{layer}" for i in range(2) for layer in ("qkv", "mlp.0")
    ]
    with pytest.raises(
        UserError, match=r"lora\.layers names kv, v, and denoiser has mlp\.0, mlp\.2, modulation, out, "
    ):
        adapted_layers(LoRAConfig(layers=("qkv", "kv", "v")), "denoiser", net)


def test_networks_without_linear_layers_in_their_blocks_are_refused() -> None:
    for case in ("ddpm, edm2", "autoencoder", "flow"):
        with pytest.raises(UserError, match=r"there are none in .*; leave lora out, or name others"):
            adapted(case)
    with pytest.raises(UserError, match=r"lora\.networks names unet, and this stage's networks are denoiser"):
        adapted(config=LoRAConfig(networks=("unet",)))


def test_networks_that_are_not_named_or_have_no_linear_layers_are_trained_whole() -> None:
    assert adapted_networks(LoRAConfig(), CASES["ddpm, edm"].stage().networks()) == ["denoiser"]  # no log_variance
    nets = adapted("gan", LoRAConfig(networks=("generator",)))
    assert all(parameter.requires_grad for parameter in nets["discriminator"].parameters())
    assert not all(parameter.requires_grad for parameter in nets["generator"].parameters())


def test_what_starts_fresh_is_trained_whole() -> None:
    net = adapted("ddpm", fresh=["denoiser.label", "denoiser.middle.0.emb", "denoiser.out.bias"])["denoiser"]
    trained = [name for name, p in net.named_parameters() if p.requires_grad and ".lora_" not in name]
    assert trained == ["label.weight", "middle.0.emb.base_layer.weight", "middle.0.emb.base_layer.bias", "out.bias"]


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_new_adapter_changes_nothing_and_a_trained_one_adds_a_scaled_product(alpha: float | None) -> None:
    torch.manual_seed(0)
    plain = randomized(CASES[DIT].stage().networks()["denoiser"]).eval()
    net = adapted(config=LoRAConfig(rank=2, alpha=alpha))["denoiser"].eval()
    values = plain.state_dict()
    net.load_state_dict({k: values.get(plain_name(k), t) for k, t in net.state_dict().items()})
    x, t, labels = torch.randn(3, 1, 8, 8), torch.rand(3), torch.tensor([0, 5, 10])
    with torch.no_grad():
        assert torch.equal(net(x, t, labels), plain(x, t, labels))
        for i in range(2):
            a, b = (net.get_parameter(f"layers.{i}.qkv.lora_{part}.default.weight") for part in "AB")
            b.normal_()
            plain.get_parameter(f"layers.{i}.qkv.weight").add_((alpha or 2) / 2 * b @ a)
        torch.testing.assert_close(net(x, t, labels), plain(x, t, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ema", [EMAConfig(decay=0.5), PowerEMAConfig(kind="power")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_leave_the_frozen_weights_bit_for_bit(
    optimizer: str, ema: EMAConfig | PowerEMAConfig, runtime: Runtime
) -> None:
    stage = with_adapters(CASES[DIT].stage(), LoRAConfig(rank=2), ["denoiser.label"])
    config = OptimizerConfig.model_validate({"kind": optimizer, "lr": 0.1, "warmup": 0, "weight_decay": 0.1})

    def start(nets: Mapping[str, nn.Module]) -> None:
        randomized(nets["denoiser"])  # adapters behind gates of zero have no gradients

    trainer = Trainer(stage, runtime, TrainConfig(steps=3, log_every=1), config, ema, seed=5, batch_size=4, start=start)
    net, average = trainer.nets["denoiser"], trainer.averages["denoiser"].net
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for _ in range(3):
        trainer.train_step([real_batch(4)])
    for name, parameter in net.named_parameters():
        moves = ".lora_" in name or name == "label.weight"
        assert torch.equal(parameter, before[name]) == (not moves), name
        assert parameter.requires_grad == moves
        # One copy for all averages.
        assert (average.get_parameter(name) is parameter) == (not moves), name
    state = trainer.state()
    frozen = {f"net.denoiser.{name}" for name in before if ".lora_" not in name and name != "label.weight"}
    assert state.keys() >= frozen
    held: dict[str, Tensor] = {name: t for name, t in state.items() if not name.startswith("net.")}
    assert all(".lora_" in name or "label" in name for name in held)
    assert {name.partition(".")[0].partition("_")[0] for name in held} == {"ema", "optimizer"}


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UserError, match=r"peft is not installed; install it with: pip install 'diffpipe\[lora\]'"):
        with_adapters(CASES["ddpm"].stage(), LoRAConfig(), ())
