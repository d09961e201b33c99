"""Feature networks: resizing as PIL does, precision, the two built-in ones, and a plug-in's."""

from __future__ import annotations

import hashlib
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from PIL import Image
from torch import nn

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.metrics import features
from diffpipe.metrics.features import Extractor, build_extractor, efficientnet_lite0, inception
from diffpipe.metrics.names import DEFAULT_METRICS, parse_metric


def images(b: int, c: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (b, c, size, size), dtype=np.uint8))


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return efficientnet_lite0()


def test_efficientnet_is_deterministic_and_hashed(lite0: Extractor) -> None:
    x = images(5, 3, 32)
    y = lite0(x)
    assert (y.shape, y.dtype, lite0.dim) == ((5, 1280), torch.float32, 1280)
    assert torch.equal(y, lite0(x))
    # The file's name ends with the first digits of its sha256.
    assert lite0.sha256.startswith("57934424")
    assert "96x96" in lite0.resize


def test_the_default_features_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    for name in {parse_metric(metric).extractor for metric in DEFAULT_METRICS}:
        assert build_extractor(name)(images(1, 3, 32)).shape == (1, 1280)


def test_each_row_depends_on_its_own_image(lite0: Extractor) -> None:
    x = images(6, 3, 32)
    torch.testing.assert_close(lite0(x)[4:], lite0(x[4:]), rtol=1e-4, atol=1e-4)


def test_gray_is_repeated_to_rgb_and_other_channels_are_refused(lite0: Extractor) -> None:
    gray = images(3, 1, 28)
    assert torch.equal(lite0(gray), lite0(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(UserError, match="not 4 channels"):
        lite0(images(1, 4, 28))


@pytest.mark.parametrize("size", [28, 96, 200])
def test_resize_is_pils(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(1, 3, size, seed=size)
    monkeypatch.setattr(features, "lite0_features", lambda _, scaled: scaled.flatten(1))
    ours = (efficientnet_lite0(96)(x) * 128 + 127).reshape(3, 96, 96).numpy()
    # Float channels: on bytes PIL also clips and rounds between its two passes.
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in x[0].numpy()]
    theirs = np.stack([np.array(c.resize((96, 96), Image.Resampling.BICUBIC)) for c in channels])
    # One level apart only where a value falls within rounding error of a half.
    assert np.abs(ours - theirs.clip(0, 255)).max() < 0.5 + 1e-3


def test_features_are_float32_products_whatever_the_process_has_set() -> None:
    settings = []

    def network(x: torch.Tensor) -> torch.Tensor:
        settings.append((torch.is_autocast_enabled("cpu"), torch.backends.cudnn.conv.fp32_precision))  # pyright: ignore
        return torch.ones(3, 4) @ x.float().flatten(1)[:, :4].T

    before = torch.backends.cudnn.conv.fp32_precision  # pyright: ignore
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = Extractor("plain", 3, "", "", network)(images(3, 3, 8))
    assert settings == [(False, "ieee")]
    assert y.dtype == torch.float32
    assert not y.requires_grad
    assert torch.backends.cudnn.conv.fp32_precision == before  # pyright: ignore


class Pooled(nn.Module):
    """Stands in for Inception: takes what clean-fid hands over and returns [b 2048 1 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(16), nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Unflatten(1, (2048, 1, 1))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / features.INCEPTION_FILE
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pooled()).save(path)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_is_cleanfids_network_after_cleanfids_resize(scripted: Path, tmp_path: Path) -> None:
    x = images(3, 3, 40)
    renamed = tmp_path / "renamed.pt"
    renamed.write_bytes(scripted.read_bytes())
    extractor = inception(renamed, sha256=sha256_of(renamed))
    resized = [torch.from_numpy(build_resizer("clean")(image)) for image in x.permute(0, 2, 3, 1).numpy()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = InceptionV3W(str(scripted.parent), download=False)(
            torch.stack(resized).permute(0, 3, 1, 2).contiguous()
        )
    assert torch.equal(extractor(x), expected)
    assert (extractor.dim, extractor.sha256) == (2048, sha256_of(scripted))
    # Another batch size of the same images, and repeated calls, which the script's executor would optimize.
    for _ in range(3):
        torch.testing.assert_close(extractor(x[:1]), expected[:1], rtol=1e-5, atol=1e-6)


def test_inception_weights_of_another_hash_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"wrong\.pt is not inception-2015-12-05\.pt: its sha256 is"):
        inception(wrong)
    with pytest.raises(UserError, match="fd_efficientnet_lite0, which works offline"):
        inception(tmp_path / "absent.pt")


def test_inception_is_found_by_the_environment_variable(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFPIPE_INCEPTION", str(scripted))
    assert inception(sha256=sha256_of(scripted)).sha256 == sha256_of(scripted)


def test_rank_0_downloads_once_and_the_others_wait(server, scripted: Path, tmp_path: Path, monkeypatch) -> None:
    _, serve, asked = server
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DIFFPIPE_INCEPTION", raising=False)
    url, sha256, world = serve("/inception", scripted.read_bytes()), sha256_of(scripted), 3
    barrier = threading.Barrier(world)

    def run(rank: int) -> str:
        return inception(rank=rank, barrier=barrier.wait, url=url, sha256=sha256).sha256

    for _ in range(2):  # the second time it is there
        with ThreadPoolExecutor(world) as pool:
            assert list(pool.map(run, range(world))) == [sha256] * world
    assert asked == ["/inception"]


def test_offline_no_rank_hangs_and_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DIFFPIPE_INCEPTION", raising=False)
    entered = []
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"put inception-2015-12-05\.pt at .*fd_efficientnet_lite0"):
            inception(rank=rank, barrier=lambda rank=rank: entered.append(rank), url="http://127.0.0.1:9/file")
    assert entered == [0, 1]


def test_extractors_by_name(lite0: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """\
import torch
def colour(images): return images.double().mean((2, 3))
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout())
diffpipe_feature_networks = {"colour": colour, "net": net}
"""
    (tmp_path / "my_features_of_this_test.py").write_text(source)
    plugins.load(str(tmp_path / "my_features_of_this_test.py"))
    monkeypatch.setitem(plugins._parts["feature_networks"], "number", 3)  # as an installed package might
    assert build_extractor("efficientnet_lite0").sha256 == lite0.sha256
    colour = build_extractor("colour")
    assert (colour.dim, colour.sha256) == (3, hashlib.sha256(source.encode()).hexdigest())
    x = images(2, 1, 8)
    torch.testing.assert_close(colour(x), x.float().mean((2, 3)).expand(2, 3))
    for name, message in [
        ("resnet", "one of efficientnet_lite0, inception, colour, net, number; others come with --plugin"),
        ("number", "not callable"),
        ("my_features_of_this_test:colour", "no feature network 'my_features_of_this_test:colour'"),
    ]:
        with pytest.raises(UserError, match=message):
            build_extractor(name)


def test_a_users_module_is_hashed_by_its_state_and_runs_in_eval_mode(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_network_of_this_test.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x): return torch.dropout(super().forward(x.float().mean((2, 3))), 0.5, self.training)\n"
        "a, b, c = Net(3, 5), Net(3, 5), Net(3, 5)\n"
        "b.load_state_dict(a.state_dict())\n"
        "diffpipe_feature_networks = {'a': a, 'b': b, 'c': c}\n"
    )
    plugins.load(str(tmp_path / "my_network_of_this_test.py"))
    a, b, c = (build_extractor(name) for name in "abc")
    assert a.dim == 5
    assert a.sha256 == b.sha256 != c.sha256
    assert torch.equal(a(images(4, 3, 8)), b(images(4, 3, 8)))
