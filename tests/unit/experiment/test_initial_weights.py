"""Runs that start from other weights: what is loaded, what is recorded, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffpipe
from diffpipe.__main__ import main
from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.preparation import build_trainer, prepare_stage
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime
from tests.support.checkpoint_tensors import consolidated
from tests.support.diffusers_folders import saved_folder, unet2d
from tests.support.runs import indexed_shards, saved_run
from tests.support.stage_cases import CASES

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# The network of tests.support.diffusers_folders, in our keys.
UNET = "stage.network={channels: 16, channel_mult: [1, 2], blocks: 1, attention: [4], groups: 4, head_channels: 8, "
UNET += "frequency_shift: 0, cos_first: true, norm_eps: 1e-5, downsample_padding: both}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run whose trained weights are 1, and whose averaged ones are 1.5."""
    saved_run(tmp_path / "source")
    return tmp_path / "source"


def experiment(tmp_path: Path, *words: str) -> Experiment:
    images = tmp_path / "images"
    if not images.exists():
        indexed_shards(images, 12)
    fixed = ["data.batch_size=4", "data.test=null", f"run.dir={tmp_path / 'run'}", f"data.train={images}"]
    fixed += ["sample.every=0", "checkpoint.async=false", "train.precision=fp32", "train.steps=2", "data.labels=true"]
    return CASES["ddpm"].experiment(*fixed, *words)


def prepared(tmp_path: Path, runtime: Runtime, *words: str, classes: int = 10) -> tuple[Experiment, Trainer, list[str]]:
    """The experiment as it is stored, the trainer before its first step, and what the user is told."""
    config = experiment(tmp_path, *words)
    shards, shape = open_data(config, 1)
    stage = prepare_stage(config, shards, shape._replace(classes=classes), None, runtime)
    assert stage.initial is not None
    return stage.experiment, build_trainer(stage, shards, None, runtime), stage.initial.sentences()


def all_are(tensors: dict[str, Tensor], value: float, prefix: str = "") -> bool:
    chosen = [tensor for name, tensor in tensors.items() if name.startswith(prefix)]
    return bool(chosen) and all(torch.all(tensor == value) for tensor in chosen)


@pytest.mark.parametrize(("weights", "value"), [("ema", 1.5), ("raw", 1.0)])
def test_the_networks_and_their_averages_start_at_the_weights_of_a_run(
    source: Path, weights: str, value: float, tmp_path: Path, runtime: Runtime
) -> None:
    stored, trainer, sentences = prepared(tmp_path, runtime, f"run.init={source}", f"init.weights={weights}")
    state = trainer.state()
    assert all_are(state, value, "net.")
    assert all_are(state, value, "ema.")
    assert all_are({name: tensor for name, tensor in state.items() if "exp_avg" in name}, 0)
    assert (trainer.step, trainer.position) == (0, 0)
    manifest = source / "checkpoints" / "step-00000001" / "manifest.json"
    assert stored.init.sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert f"starting from {manifest.parent} ({weights})" in sentences[0]


def test_a_checkpoint_of_the_run_can_be_chosen_by_its_path_or_its_hash(tmp_path: Path, runtime: Runtime) -> None:
    saved_run(tmp_path / "source", steps=(1, 2))
    first = tmp_path / "source" / "checkpoints" / "step-00000001"
    stored, trainer, _ = prepared(tmp_path, runtime, f"run.init={first}")
    assert all_are(trainer.state(), 1.5, "net.")
    _, trainer, _ = prepared(tmp_path, runtime, f"run.init={tmp_path / 'source'}", f"init.sha256={stored.init.sha256}")
    assert all_are(trainer.state(), 1.5, "net.")
    shutil.rmtree(first)
    with pytest.raises(UserError, match=f"run.init: .*this run needs the checkpoint .*{stored.init.sha256}"):
        prepared(tmp_path, runtime, f"run.init={tmp_path / 'source'}", f"init.sha256={stored.init.sha256}")


def test_a_label_embedding_of_other_classes_starts_fresh_only_when_asked(
    source: Path, tmp_path: Path, runtime: Runtime
) -> None:
    with pytest.raises(UserError) as refused:
        prepared(tmp_path, runtime, f"run.init={source}", classes=3)
    assert "of other shape: denoiser.label.weight ([11, 32] there, [4, 32] here)" in str(refused.value)
    assert "init.fresh=[denoiser.label] to start these fresh, or init.strict=false to load" in str(refused.value)
    for word in ("init.fresh=[denoiser.label]", "init.strict=false"):
        _, trainer, sentences = prepared(tmp_path, runtime, f"run.init={source}", word, classes=3)
        state = trainer.state()
        label = state.pop("net.denoiser.label.weight")
        assert all_are(state, 1.5, "net.")
        assert label.shape == (4, 32)
        assert label.std() > 0.5
        assert sentences[1].endswith("starts fresh: denoiser.label.weight")
        assert torch.equal(state["ema.denoiser.label.weight"], label)


def test_another_architecture_is_refused_and_what_fits_is_loaded_when_asked(
    source: Path, tmp_path: Path, runtime: Runtime
) -> None:
    with pytest.raises(UserError) as refused:
        prepared(tmp_path, runtime, f"run.init={source}", "stage.network.channel_mult=[1,2,2]")
    message = str(refused.value)
    assert "missing: denoiser.down." in message
    assert "config: stage.network.channel_mult was [1, 2] and is [1, 2, 2]" in message
    assert message.endswith("change the stage section, or set init.strict=false to load what fits")
    assert "\n" not in message
    words = (f"run.init={source}", "stage.network.channel_mult=[1,2,2]", "init.strict=false")
    _, trainer, sentences = prepared(tmp_path, runtime, *words)
    assert all_are(trainer.state(), 1.5, "net.denoiser.stem")
    assert not all_are(trainer.state(), 1.5, "net.denoiser.up")
    assert any("channel_mult was [1, 2] and is [1, 2, 2]" in sentence for sentence in sentences)


def test_a_key_that_changes_the_function_and_no_shape_is_an_architecture_too(
    source: Path, tmp_path: Path, runtime: Runtime
) -> None:
    with pytest.raises(UserError, match=r"config: stage\.network\.norm_eps was 1e-06 and is 0\.001"):
        prepared(tmp_path, runtime, f"run.init={source}", "stage.network.norm_eps=1e-3")
    _, _, sentences = prepared(tmp_path, runtime, f"run.init={source}", "stage.network.dropout=0.3")
    assert len(sentences) == 1
    words = (f"run.init={source}", "stage.prediction=v")
    assert any("stage.prediction was eps and is v" in sentence for sentence in prepared(tmp_path, runtime, *words)[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init.networks=[decoder]"], "init.networks names decoder, and this stage's networks are denoiser"),
        (["init.fresh=[denoiser.labels]"], "init.fresh names denoiser.labels, and the networks have denoiser.time, "),
        (["init.sha256=abc"], "this run needs the checkpoint whose manifest.json has sha256 abc"),
        (["stage.network.channels=4", "init.fresh=[denoiser]"], "the weights do not fit the networks"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    source: Path, words: list[str], message: str, tmp_path: Path, runtime: Runtime
) -> None:
    with pytest.raises(UserError, match=r"^run\.init: ") as refused:
        prepared(tmp_path, runtime, f"run.init={source}", *words)
    assert message in str(refused.value)


def test_init_without_weights_to_start_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.init, which is null; set run\.init"):
        experiment(tmp_path, "init.strict=false")


def test_the_networks_start_at_the_weights_of_a_diffusers_folder(tmp_path: Path, runtime: Runtime) -> None:
    folder = saved_folder(tmp_path / "folder", num_class_embeds=4)
    for classes in (3, 4):
        stored, trainer, _ = prepared(tmp_path, runtime, f"run.init={folder}", UNET, classes=classes)
        net = trainer.nets["denoiser"].eval().double()
        x, t, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 5, 900]), torch.tensor([0, 1, 2])
        with torch.no_grad():
            torch.testing.assert_close(net(x, t, labels), unet2d(num_class_embeds=4).double()(x, t, labels).sample)
        assert stored.init.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"denoiser\.label\.weight \(\[5, 64\] there, \[8, 64\] here\)"):
        prepared(tmp_path, runtime, f"run.init={folder}", UNET, classes=7)
    prepared(tmp_path, runtime, f"run.init={folder}", UNET, "init.fresh=[denoiser.label]", classes=7)
    with pytest.raises(UserError, match=r"its weights have sha256 .*, and init\.sha256 is abc"):
        prepared(tmp_path, runtime, f"run.init={folder}", UNET, "init.sha256=abc", classes=3)
    with pytest.raises(UserError, match=r"it holds one set of weights; leave init\.weights out"):
        prepared(tmp_path, runtime, f"run.init={folder}", UNET, "init.weights=raw", classes=3)


def test_the_networks_start_at_the_weights_of_an_exported_file(source: Path, tmp_path: Path, runtime: Runtime) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(source), str(file)]) == 0
    stored, trainer, _ = prepared(tmp_path, runtime, f"run.init={file}")
    assert all_are(trainer.state(), 1.5, "net.")
    assert stored.init.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_run_goes_on_without_the_weights_that_it_started_from(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = tmp_path / "run", indexed_shards(tmp_path / "images", 12)
    (source / "config.yaml").rename(tmp_path / "config.yaml")
    words = ["train", str(tmp_path / "config.yaml"), f"run.dir={run}", f"data.train={images}", "data.test=null"]
    words += ["init.fresh=[denoiser.label]", "data.batch_size=4", "sample.every=0", "train.precision=fp32"]
    words += ["checkpoint.async=false", "optimizer.lr=1e-5", "optimizer.warmup=0", "train.minutes=null"]
    assert main([*words, f"run.init={source}", "train.steps=1"]) == 0
    assert "starts fresh: denoiser.label.weight" in capsys.readouterr().err
    first = consolidated(run / "checkpoints" / "step-00000001")
    assert all(abs(t - 1.5).max() < 1e-4 for n, t in first.items() if n.startswith("net.") and "label" not in n)
    recorded = load_config(Experiment, run / "config.yaml")
    shutil.rmtree(source)
    assert main([*words[:5], *words[6:], "train.steps=2"]) == 0  # without keys of init: they are kept
    again = load_config(Experiment, run / "config.yaml")
    assert (again.run.init, again.init) == (str(source), recorded.init)
    assert diffpipe.load(run).step == 2
    assert main([*words, f"run.init={source}", "train.steps=3"]) == 0
    capsys.readouterr()
    for other in ([f"run.init={tmp_path}"], [f"run.init={source}", "init.weights=raw"]):
        assert main([*words, *other, "train.steps=4"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"its run started with run.init={source} init.fresh=['denoiser.label'] init.sha256=" in line
        assert "leave run.init and init out to resume it" in line
