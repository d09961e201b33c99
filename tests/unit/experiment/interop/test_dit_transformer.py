"""Our DiT and DiTTransformer2DModel: config and tensors to and fro, the same function, what the other cannot say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel

from diffpipe.errors import UserError
from diffpipe.experiment.interop.dit_transformer import DiTTransformer, from_dit_transformer, to_dit_transformer
from diffpipe.nn.dit import DiTConfig
from diffpipe.resolution import Resolution, square
from tests.support.diffusers_folders import dit_transformer
from tests.support.randomized import normal

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned variance": {"out_channels": 6},
    "another eps": {"norm_eps": 1e-6, "patch_size": 4},
    "one class": {"num_embeds_ada_norm": 1},
}


def parsed(model: DiTTransformer2DModel) -> DiTTransformer:
    return from_dit_transformer(dict(model.config), "transformer/config.json")


@pytest.mark.parametrize("case", CHANGES)
def test_there_and_back_config_and_tensors_are_the_same(case: str) -> None:
    theirs = dit_transformer(**CHANGES[case])
    model = parsed(theirs)
    given = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert to_dit_transformer(model).model_dump() == {**given, "out_channels": model.out_channels}
    tensors = theirs.state_dict()
    expected = model.network.build(3, square(8), model.classes, model.out_channels).state_dict()
    again = model.their_tensors(model.our_tensors(tensors, expected))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("case", CHANGES)
def test_with_their_weights_ours_computes_what_theirs_does(case: str) -> None:
    theirs = dit_transformer(**CHANGES[case])
    model = parsed(theirs)
    ours = model.network.build(3, square(8), model.classes, model.out_channels)
    ours.load_state_dict(model.our_tensors(theirs.state_dict(), ours.state_dict()))
    x, t = normal(3, 3, 8, 8).double(), torch.tensor([0.5, 17, 999])  # float32 waves of times, as theirs
    labels = torch.tensor([0, model.classes - 1, model.classes])
    with torch.no_grad():
        expected = theirs.double()(x, t, labels, return_dict=False)[0]
        torch.testing.assert_close(ours.eval().double()(x, t, labels), expected, rtol=1e-6, atol=1e-6)


def test_a_network_without_labels_has_a_class_of_zeros() -> None:
    network = DiTConfig(kind="dit", width=16, depth=2, heads=2)
    model, net = DiTTransformer(network, 1, 1, square(8), 1), network.build(1, square(8))
    theirs = model.their_tensors(net.state_dict())
    ours = model.our_tensors(theirs, net.state_dict())
    assert ours.keys() == net.state_dict().keys()
    assert model.count_classes(0, "x") == 0
    theirs["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"][0, 0] = 1
    theirs["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][0, 0] = 1
    with pytest.raises(UserError, match="its class embedding is not zero"):
        model.our_tensors(theirs, net.state_dict())


def test_embeddings_that_differ_between_the_blocks_are_refused() -> None:
    theirs = dit_transformer()
    tensors = theirs.state_dict()
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"][0] += 1
    with pytest.raises(UserError, match=r"^transformer_blocks\.1 has other values in norm1\.emb\.timestep_embedder"):
        parsed(theirs).our_tensors(tensors, tensors)


def test_the_config_of_early_versions_is_read() -> None:
    given = dict(dit_transformer().config)
    early = {**given, "_class_name": "Transformer2DModel", "cross_attention_dim": None, "use_linear_projection": False}
    assert from_dit_transformer(early, "x") == from_dit_transformer(given, "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine is True; give False"),
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu'; give 'gelu-approximate'"),
        ({"num_layers": 10**9}, "num_layers is 1000000000; too many"),
        ({"use_linear_projection": True}, "unknown key use_linear_projection"),
        ({"attention_head_dim": 3}, "width 6 must be a multiple of 4"),
    ],
)
def test_other_networks_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"^transformer/config.json: .*{words}"):
        from_dit_transformer({**dit_transformer().config, **change}, "transformer/config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qk_norm": True}, "stage.network.qk_norm is true, and .* has false; export --to safetensors"),
        ({"rope": True}, "stage.network.rope is true"),
        ({"mlp": "swiglu"}, "stage.network.mlp is swiglu, and .* has gelu"),
        ({"norm": "rms"}, "stage.network.norm is rms, and .* has layer"),
        ({"mlp_ratio": 2}, "stage.network.mlp_ratio is 2.0, and .* has 4.0"),
        ({"frequency_shift": 0}, "stage.network.frequency_shift is 0, and .* has 1"),
    ],
)
def test_what_no_dit_transformer_computes_is_refused_by_its_key(change: dict[str, Any], words: str) -> None:
    network = DiTConfig.model_validate({"kind": "dit", "width": 16, "depth": 1, "heads": 2, **change})
    with pytest.raises(UserError, match=words):
        to_dit_transformer(DiTTransformer(network, 3, 3, square(8), 5))


def test_images_that_are_not_square_have_no_dit_transformer() -> None:
    network = DiTConfig.model_validate({"kind": "dit", "width": 16, "depth": 1, "heads": 2})
    with pytest.raises(UserError, match=r"data\.resolution: the network denoises 8x12, and .* takes square images"):
        to_dit_transformer(DiTTransformer(network, 3, 3, Resolution(8, 12), 5))


def test_the_number_of_classes_is_that_of_the_embedding() -> None:
    with pytest.raises(UserError, match=r"^x: its class embedding has 5 rows beside the empty label's; leave"):
        parsed(dit_transformer()).count_classes(4, "x")
