"""Training from servers on this machine, through the real command: one that drops and throttles, and one that is S3."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import CONFIG, SHARDS, TINY, diffpipe, seen, tensors
from tests.support.web_server import serving

STEPS = ["train.steps=4", "checkpoint.every=4", "sample.every=0", "eval.every=0", "train.record_samples=true"]
TOKEN = "hunter2"


def train(run: Path, place: object, *words: str, processes: int = 0, env: dict[str, str] | None = None) -> str:
    overrides = [f"data.train={place}", "data.test=null", f"data.cache={run.parent}/cache", "data.workers=1"]
    result = diffpipe(
        "train", CONFIG, f"run.dir={run}", *TINY, *STEPS, *overrides, *words, processes=processes, env=env
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def assert_same(run: Path, other: Path) -> None:
    assert len(seen(run)) == 4
    assert seen(run) == seen(other)
    ours, theirs = (tensors(each / "checkpoints" / "step-00000004") for each in (run, other))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the local disk, on two processes."""
    run = tmp_path_factory.mktemp("local") / "run"
    train(run, SHARDS / "train", processes=2)
    return run


def test_a_server_that_drops_and_throttles_trains_the_same_weights_and_learns_no_secret(
    tmp_path: Path, straight: Path
) -> None:
    with serving(SHARDS / "train") as web:
        web.drop, web.rate = 10, 8e6
        place = f"{web.url}/?token=${{TOKEN}}"
        said = train(tmp_path / "run", place, processes=2, env={"TOKEN": TOKEN})
        requests = list(web.requests)
    assert_same(tmp_path / "run", straight)

    tars = {path.name: path.stat().st_size for path in (SHARDS / "train").glob("*.tar")}
    fetched = [request for request in requests if request.path.removeprefix("/") in tars]
    assert all(request.query == f"token={TOKEN}" for request in requests)
    # Four processes read them, and each tar came once, but for what broke off and was taken up where it broke.
    assert len(fetched) > len(tars)
    for name, size in tars.items():
        answers = [request for request in fetched if request.path == f"/{name}"]
        assert sum(request.start + request.sent == size for request in answers) <= 1
    assert sum(request.sent for request in fetched) <= sum(tars.values()) + (1 << 20) * (len(fetched) - len(tars))

    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "run" / "config.yaml") in kept
    texts = [said, *map(str, kept), *(path.read_bytes().decode("latin-1") for path in kept)]
    assert not any(TOKEN in text for text in texts)


def test_a_secret_in_the_url_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for url in (f"http://me:{TOKEN}@127.0.0.1:9/", f"http://127.0.0.1:9/?token={TOKEN}"):
        result = diffpipe("train", CONFIG, f"run.dir={tmp_path}/run", *TINY, f"data.train={url}")
        assert result.returncode == 2
        assert TOKEN not in result.stderr
        assert "environment variable" in result.stderr
    assert list(tmp_path.iterdir()) == []


@contextmanager
def server(*words: str, ready: str, method: str = "GET") -> Iterator[str]:
    """The URL of a server that is started by these words and a port, once it answers a request for `ready`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", *words, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    send(url + ready, b"", method)
                    break
                except urllib.error.URLError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield url
        finally:
            process.kill()


def send(url: str, data: bytes, method: str) -> None:
    plain = {"Content-Type": "application/octet-stream"}  # else moto waits for a form
    urllib.request.urlopen(urllib.request.Request(url, data or None, plain, method=method), timeout=30).close()


def test_an_s3_server_trains_the_same_weights(tmp_path: Path, straight: Path) -> None:
    with server("moto.server", "-p", ready="/bucket", method="PUT") as url:
        for path in (SHARDS / "train").glob("*.*"):
            send(f"{url}/bucket/train/{path.name}", path.read_bytes(), "PUT")
        access = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": TOKEN}
        said = train(tmp_path / "run", "s3://bucket/train", processes=2, env={**access, "AWS_REGION": "us-east-1"})
        missing = diffpipe("train", CONFIG, f"run.dir={tmp_path}/x", *TINY, "data.train=s3://bucket/no", env=access)
    assert_same(tmp_path / "run", straight)
    assert TOKEN not in said
    assert "s3://bucket/no/index.safetensors: cannot be read (there is no such file)" in missing.stderr


def test_a_google_storage_server_trains_the_same_weights(tmp_path: Path, straight: Path) -> None:
    words = ["gcp_storage_emulator", "start", "--in-memory", "--default-bucket", "bucket", "--port"]
    with server(*words, ready="/storage/v1/b/bucket") as url:
        for path in (SHARDS / "train").glob("*.*"):
            place = f"{url}/upload/storage/v1/b/bucket/o?uploadType=media&name=train/{path.name}"
            send(place, path.read_bytes(), "POST")
        access = {"STORAGE_EMULATOR_HOST": url}
        train(tmp_path / "run", "gs://bucket/train", processes=2, env=access)
        missing = diffpipe("train", CONFIG, f"run.dir={tmp_path}/x", *TINY, "data.train=gs://bucket/no", env=access)
    assert_same(tmp_path / "run", straight)
    assert "gs://bucket/no/index.safetensors: cannot be read (there is no such file)" in missing.stderr
