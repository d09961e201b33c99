"""A run and an index of somebody else send no request, get no secret, and read no place that the user did not name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffpipe.data.index.mmapped_safetensors import StreamedArray, map_arrays, write_arrays
from diffpipe.data.index.shard_index import INDEX_NAME
from tests.support.commands import HOME, SHARDS, diffpipe, refused, succeeds, train
from tests.support.web_server import Web, serving

TEST = SHARDS / "test" / "test-000000.tar"
SECRET = "hunter2"
FLOW = HOME / "configs" / "fashion_mnist" / "vae.yaml"


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of its own, and a secret in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("SECRET", SECRET)
        yield


@pytest.fixture
def web() -> Iterator[Web]:
    with serving(SHARDS / "test") as server:
        yield server


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run of this user."""
    home = tmp_path_factory.mktemp("own")
    train(home, "train.steps=1", "data.resolution=8", "data.channels=1", f"data.train={TEST}", "data.test=null")
    return home


@pytest.fixture(scope="module")
def own_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("own_vae")
    words = ["train.steps=1", "stage.conditional=false", f"data.train={TEST}", "data.test=null"]
    train(home, *words, config=FLOW)
    return home


def given(run: Path, home: Path, trained_on: object) -> Path:
    """A copy of the run whose config, by its own manifest, names other training shards."""
    shutil.copytree(run, home)
    (checkpoint,) = (home / "checkpoints").glob("step-*")
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    state["experiment"]["data"]["train"] = str(trained_on)
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return home


EVAL = ["--reference", TEST, "--n", 4, "--steps", 2, "--metrics", "fd_efficientnet_lite0"]


def test_a_given_run_sends_no_request(own: Path, own_vae: Path, tmp_path: Path, web: Web) -> None:
    place = f"{web.url}/?leak=${{SECRET}}"
    run, vae = given(own, tmp_path / "run", place), given(own_vae, tmp_path / "vae", place)
    succeeds("sample", run, tmp_path / "images", "--n", 1)
    succeeds("eval", run, *EVAL)
    succeeds("nll", vae, TEST, "--n", 4)
    said = succeeds("anomaly", vae, "--normal", TEST, "--abnormal", TEST, "--n", 4)
    assert "no typicality" in said
    assert "give the training SHARDS" in said
    line = refused("classify", run, TEST, "--n", 4, "--steps", 2)
    assert line.endswith("give the prior: SHARDS, data or uniform")
    assert "it is remote" in refused("classify", run, TEST, "--n", 4, "--steps", 2, "--prior", "data")
    line = refused("compare", run, "--reference", TEST, "--out", tmp_path / "page", "--n", 4, "--nll-n", 4)
    assert line.endswith("give --floor")
    assert web.requests == []


def test_a_given_run_reads_no_local_place_but_by_an_option(own: Path, own_vae: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    run, vae = given(own, tmp_path / "run", absent), given(own_vae, tmp_path / "vae", absent)
    succeeds("eval", run, *EVAL)
    assert str(absent) not in refused("classify", run, TEST, "--n", 4, "--steps", 2)
    assert str(absent) in refused("classify", run, TEST, "--n", 4, "--steps", 2, "--prior", "data")
    succeeds("classify", run, TEST, "--n", 4, "--steps", 2, "--prior", TEST)
    words = ["anomaly", vae, "--normal", TEST, "--abnormal", TEST, "--n", 4]
    assert "typicality  " not in succeeds(*words)
    assert "typicality  " in succeeds(*words, "--training", TEST)


def test_a_run_of_ones_own_knows_its_local_shards_where_it_was_trained(
    own: Path, own_vae: Path, tmp_path: Path
) -> None:
    succeeds("classify", own, TEST, "--n", 4, "--steps", 2)
    assert "typicality  " in succeeds("anomaly", own_vae, "--normal", TEST, "--abnormal", TEST, "--n", 4)
    shutil.copytree(own, tmp_path / "copy")
    refused("classify", tmp_path / "copy", TEST, "--n", 4, "--steps", 2)


def given_index(folder: Path, base: str, shards: dict[str, Any] | None = None) -> Path:
    """The index of the test shards, in a folder of its own and with another base."""
    folder.mkdir()
    arrays, metadata = map_arrays(SHARDS / "test" / INDEX_NAME)
    arrays.pop("sha256")
    header = json.loads(metadata["diffpipe"]) | {"version": 2, "base": base}
    if shards is not None:
        header["shards"] = [shard | shards for shard in header["shards"][:1]] + header["shards"][1:]
    columns = {name: StreamedArray(array.dtype, len(array), [array]) for name, array in arrays.items()}
    write_arrays(folder / INDEX_NAME, columns, {"diffpipe": json.dumps(header)}, checksum=True)
    return folder


def test_a_given_index_leads_nowhere_unless_it_is_allowed(own: Path, tmp_path: Path, web: Web) -> None:
    folder = given_index(tmp_path / "given", f"{web.url}/?leak=${{SECRET}}")
    words = ["nll", own, folder, "--n", 4, "--steps", 2]
    line = refused(*words)
    assert f"its shards lie at {web.url}/, which you have not named yourself" in line
    assert f"--allow-base {web.url}/" in line
    assert web.requests == []
    cache = {"DIFFPIPE_CACHE": str(tmp_path / "cache")}
    result = diffpipe(*words, "--allow-base", f"{web.url}/?t=${{TOKEN}}", env=cache | {"TOKEN": "t0"})
    assert result.returncode == 0, result.stderr
    assert {request.query for request in web.requests} == {"t=t0"}
    assert {request.path for request in web.requests} <= {f"/{path.name}" for path in (SHARDS / "test").glob("*.tar")}


def test_the_names_in_a_given_index_add_no_query(own: Path, tmp_path: Path, web: Web) -> None:
    folder = given_index(tmp_path / "given", f"{web.url}/", {"name": "x.tar?leak=${SECRET}"})
    line = refused("nll", own, folder, "--n", 4, "--steps", 2, "--allow-base", web.url)
    assert "is not the name of a file" in line
    assert web.requests == []


def test_an_index_on_a_server_leads_to_no_other_host(own: Path, tmp_path: Path, web: Web) -> None:
    folder = given_index(tmp_path / "web", f"{web.url}/?leak=${{SECRET}}")
    with serving(folder) as stranger:
        line = refused("nll", own, f"{stranger.url}/", "--n", 4, "--steps", 2)
        assert {request.query for request in stranger.requests} == {""}
    assert f"its shards lie at {web.url}/" in line
    assert web.requests == []


def test_an_index_of_ones_own_keeps_the_words_of_its_url(own: Path, tmp_path: Path, web: Web) -> None:
    folder = tmp_path / "here"
    names = f"{web.url}/test-{{000000..000001}}.tar?t=${{SECRET}}"
    succeeds("index", names, "--out", folder, "--workers", 1)
    assert b"SECRET" not in (folder / INDEX_NAME).read_bytes()
    web.requests.clear()
    words = ["nll", own, folder, "--n", 4, "--steps", 2]
    result = diffpipe(*words, env={"DIFFPIPE_CACHE": str(tmp_path / "cache")})
    assert result.returncode == 0, result.stderr
    assert {request.query for request in web.requests} == {f"t={SECRET}"}
    shutil.copytree(folder, tmp_path / "copy")
    assert "--allow-base" in refused("nll", own, tmp_path / "copy", "--n", 4, "--steps", 2)
