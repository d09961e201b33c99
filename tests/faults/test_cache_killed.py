"""Processes that fill one cache: several at once, and one that is killed while it does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.support.commands import HOME, SHARDS, seen
from tests.support.training_jobs import TrainingJob
from tests.support.web_server import serving

SIZE = 2_000_000


def make_files(folder: Path, n: int) -> dict[str, str]:
    """Files of random bytes: names to hashes."""
    folder.mkdir()
    hashes: dict[str, str] = {}
    for i in range(n):
        data = os.urandom(SIZE)
        (folder / f"{i}.tar").write_bytes(data)
        hashes[f"{i}.tar"] = hashlib.sha256(data).hexdigest()
    return hashes


def fill(cache: Path, url: str, hashes: dict[str, str]) -> subprocess.Popen[str]:
    words = [word for name, sha256 in hashes.items() for word in (f"{url}/{name}", str(SIZE), sha256)]
    started = [sys.executable, "-m", "tests.faults.fill_cache", str(cache), *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(started, cwd=HOME, env=env, stdout=subprocess.PIPE, text=True)


def partly_fetched(cache: Path) -> bool:
    """Whether a shard has been fetched in part."""
    with suppress(FileNotFoundError):  # just renamed
        return any(path.stat().st_size for path in cache.glob("*.part") if ".index." not in path.name)
    return False


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != "lock")


def test_two_processes_that_fill_a_cache_fetch_each_file_once(tmp_path: Path) -> None:
    hashes = make_files(tmp_path / "web", 4)
    with serving(tmp_path / "web") as web:
        web.rate = 4e6
        with fill(tmp_path / "cache", web.url, hashes) as first, fill(tmp_path / "cache", web.url, hashes) as second:
            outputs = [filler.communicate(timeout=60)[0] for filler in (first, second)]
        assert [output.split() for output in outputs] == 2 * [list(hashes.values())]
        assert sorted(request.path for request in web.requests) == sorted(f"/{name}" for name in hashes)
    assert [len(name) for name in names(tmp_path / "cache")] == 4 * [64]


def test_a_process_killed_while_it_fetches_harms_no_other(tmp_path: Path) -> None:
    hashes = make_files(tmp_path / "web", 2)
    cache = tmp_path / "cache"
    with serving(tmp_path / "web") as web:
        web.rate = 1e6
        with fill(cache, web.url, hashes) as first:
            deadline = time.monotonic() + 60
            while not partly_fetched(cache):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with fill(cache, web.url, hashes) as waiting:  # fetching when the other one is killed
                time.sleep(0.3)
                first.kill()
                outputs = [filler.communicate(timeout=60)[0] for filler in (first, waiting)]
        assert [output.split() for output in outputs] == [[], list(hashes.values())]
        broken, *others = [request for request in web.requests if request.path == "/0.tar"]
        assert broken.sent < SIZE
        assert [request.start > 0 for request in others] == [True]  # it resumed the partial file
        assert [request.start for request in web.requests if request.path == "/1.tar"] == [0]

        with fill(cache, web.url, hashes) as after:
            assert after.communicate(timeout=60)[0].split() == list(hashes.values())
        assert len(web.requests) == 3
    assert [len(name) for name in names(cache)] == 2 * [64]


def test_a_run_whose_loader_is_killed_while_it_fetches_resumes_from_an_intact_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = [f"data.cache={cache}", "data.workers=1", "data.test=null", "train.steps=3", "checkpoint.every=3"]
    with serving(SHARDS / "train") as web:
        web.rate = 1e6
        job = TrainingJob(tmp_path / "run", f"data.train={web.url}", *words)
        job.wait_until(lambda: partly_fetched(cache))
        for loader in job.ranks[0].children():
            loader.kill()
        status, stderr = job.wait()
        assert status == 2
        assert "a loader process has died" in stderr

        web.rate = 0
        status, stderr = TrainingJob(tmp_path / "run", f"data.train={web.url}", *words).wait()
        assert status == 0, stderr
    status, stderr = TrainingJob(tmp_path / "local", f"data.train={SHARDS}/train", *words).wait()
    assert status == 0, stderr
    assert len(seen(tmp_path / "run")) == 3
    assert seen(tmp_path / "run") == seen(tmp_path / "local")
