"""Every config in configs/ is parsed and built as it is, then built tiny and trained two steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffpipe.config import load_config
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.dependency import TrainedStage
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import ImageShape
from diffpipe.train.ema import EMAConfig
from tests.support.commands import HOME, SHARDS, metrics, train

CONFIGS = sorted((HOME / "configs").rglob("*.yaml"))
CIFAR = HOME / "configs" / "cifar10"
IMAGES = {"cifar10": (32, 10), "ffhq64": (64, 0), "imagenet64": (64, 1000), "imagenet256": (256, 1000)}
"""The data sets of the papers: resolution and classes. Their images are in colour."""
PAPERS = [path for path in CONFIGS if path.parent.name in IMAGES]


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 24 colour images of 32x32 pixels in ten classes."""
    home = tmp_path_factory.mktemp("colour")
    for i in range(24):
        folder = home / "images" / f"{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    pack(FolderSource(home / "images"), home / "shards")
    return home / "shards"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(HOME / "configs")))
def test_it_trains(path: Path, tmp_path: Path, colour: Path) -> None:
    experiment = load_config(Experiment, path)
    assert experiment.train.steps >= 100
    if path in PAPERS:
        shards, resolution = colour, 32
        assert (experiment.data.resolution.plain(), experiment.data.channels) == (IMAGES[path.parent.name][0], 3)
    else:
        shards, resolution = tmp_path / "shards", 8
        shutil.copytree(SHARDS / "test", shards)
    small = [f"data.resolution={resolution}", f"data.train={shards}", "data.workers=0", "train.steps=2"]
    for dependency in experiment.stage.dependencies():
        if dependency.role == "codec":
            train(tmp_path / "vae", *small, config=trained_by(dependency.source))
            small.append(f"{dependency.key}={tmp_path}/vae")
    train(tmp_path / "run", *small, config=path)
    assert sorted(metrics(tmp_path / "run")) == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def trained_by(run: str) -> Path:
    """The config whose run another config takes its codec from."""
    return next(path for path in CONFIGS if load_config(Experiment, path).run.dir == run)


def networks(path: Path) -> dict[str, nn.Module]:
    """The networks of a config at their size, without memory for them."""
    experiment = load_config(Experiment, path)
    data, stage = experiment.data, experiment.stage
    shape = ImageShape(data.channels, data.resolution, IMAGES[path.parent.name][1] if data.labels else 0)
    dependencies = {}
    for dependency in stage.dependencies():
        if dependency.role == "codec":
            config = load_config(Experiment, trained_by(dependency.source)).stage
            vae = config.build(shape._replace(classes=0))
            with torch.device("meta"):
                nets = vae.networks()
            dependencies["codec"] = TrainedStage(path, config, shape, vae, nets, None)
    built = stage.build(shape, dependencies)
    with torch.device("meta"):
        return built.networks()


def ema_of(name: str) -> EMAConfig:
    ema = load_config(Experiment, CIFAR / f"{name}.yaml").ema
    assert isinstance(ema, EMAConfig)
    return ema


@pytest.mark.parametrize("name", ["ddpm", "adversarial"])
def test_averages_without_a_warm_up_copy_the_first_weights(name: str) -> None:
    """As in the code of Ho et al. 2020 (`make_ema`) and of Xiao et al. 2022."""
    ema = ema_of(name)
    assert [ema.decay_at(step) for step in (0, 1, 2, 1000)] == [0, 0.9999, 0.9999, 0.9999]


def test_the_gans_average_reaches_its_half_life_after_twenty_million_images() -> None:
    """As in the code of Huang et al. 2024, where it is 5 million images."""
    ema, batch = ema_of("gan"), 512
    assert ema.decay == pytest.approx(0.5 ** (batch / 5e6), abs=2e-6)
    assert ema.decay_at(10**7 // batch) < ema.decay == ema.decay_at(int(2.2e7) // batch)


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: str(p.relative_to(HOME / "configs")))
def test_it_is_built_at_its_size(path: Path) -> None:
    assert all(parameter.is_meta for net in networks(path).values() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "network", "millions"),
    [
        ("cifar10/ddpm", "denoiser", 35.7),  # Ho et al. 2020, appendix B
        ("cifar10/flow", "flow", 44.0),  # by the layers of the code of Kingma & Dhariwal 2018
        ("cifar10/flow_matching", "denoiser", 35.7),  # by the code of Tong et al. 2024
        ("imagenet64/adm", "denoiser", 296),  # Dhariwal & Nichol 2021, table 11
        ("imagenet64/edm2_s", "denoiser", 280),  # Karras et al. 2024, table 6
        ("imagenet256/dit_b2", "denoiser", 130),  # Peebles & Xie 2023, table 4
        ("imagenet256/dit_xl2", "denoiser", 675),
        ("imagenet256/vq_autoregressive", "transformer", 111),  # Sun et al. 2024, table 2
        ("imagenet256/sit_b2", "denoiser", 130),  # Ma et al. 2024, table 1
        ("imagenet256/sit_xl2", "denoiser", 675),
    ],
)
def test_where_the_network_is_the_papers_so_is_its_size(name: str, network: str, millions: float) -> None:
    """To as many digits as the paper gives."""
    rounding = 0.1 if millions % 1 else 0.5
    assert parameters(name, network) / 1e6 == pytest.approx(millions, abs=rounding)


@pytest.mark.parametrize(
    ("name", "network", "millions", "words"),
    [
        ("cifar10/edm", "denoiser", 53.6, "53.6 million parameters. DDPM++ has 55.7"),  # Karras et al. 2022, table 7
        ("ffhq64/edm", "denoiser", 58.7, "58.7 million parameters, DDPM++ has 61.8"),
        ("imagenet256/latent_vae", "encoder", 23.7, "51.7 million parameters without attention, theirs 83.7 with"),
        ("imagenet256/latent_vae", "decoder", 28.1, "51.7 million parameters without attention, theirs 83.7 with"),
        ("imagenet256/vq", "encoder", 15.6, "35.5 million parameters without attention, theirs 72 with"),
        ("imagenet256/vq", "decoder", 20.0, "35.5 million parameters without attention, theirs 72 with"),
    ],
)
def test_where_the_size_is_another_the_config_says_so(name: str, network: str, millions: float, words: str) -> None:
    assert words in (HOME / "configs" / f"{name}.yaml").read_text()
    assert parameters(name, network) / 1e6 == pytest.approx(millions, abs=0.1)


def parameters(name: str, network: str) -> int:
    nets = networks(HOME / "configs" / f"{name}.yaml")
    return sum(parameter.numel() for parameter in nets[network].parameters())


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("cifar10/ddpm", 102.4e6),
        ("cifar10/edm", 200e6),
        ("ffhq64/edm", 200e6),
        ("imagenet64/adm", 540_000 * 2048),
        ("imagenet64/edm2_s", 2**30),
    ],
)
def test_it_sees_as_many_images_as_the_paper(name: str, images: float) -> None:
    experiment = load_config(Experiment, HOME / "configs" / f"{name}.yaml")
    assert experiment.train.steps * experiment.data.batch_size == pytest.approx(images, rel=1e-5)


@pytest.mark.parametrize("name", ["cifar10/edm", "ffhq64/edm"])
def test_edms_average_warm_up_and_epsilon_are_the_papers(name: str) -> None:
    """A half-life of 500,000 images, a warm-up over 10 million, and Adam's 1e-8 for a loss that is a sum."""
    experiment = load_config(Experiment, HOME / "configs" / f"{name}.yaml")
    batch, ema = experiment.data.batch_size, experiment.ema
    assert isinstance(ema, EMAConfig)
    assert ema.decay == pytest.approx(0.5 ** (batch / 5e5), abs=1e-6)
    assert experiment.optimizer.warmup * batch == pytest.approx(10e6, rel=1e-4)
    assert experiment.optimizer.eps == pytest.approx(1e-8 / (3 * experiment.data.resolution.pixels), rel=1e-3)
