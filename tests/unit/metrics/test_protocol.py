"""Score files: written whole, read back, and compared only where their protocols are alike."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.metrics.protocol import Result, compare, read, require_alike, write
from tests.support.planted import plant


def result() -> Result:
    fid = {"extractor": "inception", "sha256": "f58c", "resize": "bicubic to 299x299", "distance": "frechet"}
    kid = fid | {"distance": "mmd", "subsets": 100, "subset_size": 1000}
    protocol = {
        "metrics": {"fid": fid, "kid": kid},
        "generated": {"n": 1000, "run": "runs/a", "weights": "ema", "sampler": "ddim", "seeds": [0, 999]},
        "reference": {"n": 2000, "shards": "data/test", "fingerprint": "ab12"},
        "floor": {"n": [1000, 1000], "images": "halves"},
        "versions": {"diffpipe": "0.1.0", "torch": "2.13.0"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    return Result({"fid": 12.5, "kid": 0.01}, {"fid": 3.0, "kid": 1e-4}, protocol)


def changed(path: str, value: Any) -> Result:
    other = copy.deepcopy(result())
    *sections, leaf = path.split(".")
    tree = other.protocol
    for section in sections:
        tree = tree[section]
    tree[leaf] = value
    return other


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("generated.n", 2000),
        ("reference.n", 1000),
        ("reference.fingerprint", "cd34"),
        ("metrics.fid.sha256", "0000"),
        ("metrics.fid.resize", "bilinear"),
        ("metrics.kid.subset_size", 500),
        ("metrics.kid.new_parameter", 1),
    ],
)
def test_what_defines_the_score_has_to_agree(path: str, value: Any) -> None:
    a, b = result(), changed(path, value)
    assert compare(a, b) == compare(b, a) == [path]
    with pytest.raises(UserError, match=f"x and y follow unlike protocols.*{path}: .* against {value!r}"):
        require_alike(a, b, ("x", "y"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("generated.run", "runs/b"),
        ("generated.sampler", "ancestral"),
        ("generated.weights", "raw"),
        ("floor.images", "train"),
        ("versions.torch", "2.14.0"),
        ("date", "2027-01-01T00:00:00+00:00"),
        ("reference.shards", "elsewhere/test"),
    ],
)
def test_what_is_compared_may_differ(path: str, value: Any) -> None:
    assert compare(result(), changed(path, value)) == []
    require_alike(result(), changed(path, value))


def test_all_differing_fields_are_listed() -> None:
    other = changed("generated.n", 5)
    other.protocol["metrics"]["fid"]["sha256"] = "0000"
    with pytest.raises(UserError, match=r"generated\.n: 1000 against 5; metrics\.fid\.sha256: 'f58c' against '0000'"):
        require_alike(result(), other)


def test_only_metrics_that_both_hold_are_compared() -> None:
    other = replace(changed("metrics.kid.subsets", 10), scores={"fid": 9.0})
    assert compare(result(), other) == []
    with pytest.raises(UserError, match="share no metric: fid, kid against other"):
        require_alike(result(), replace(other, scores={"other": 1.0}))


def test_references_without_a_fingerprint_are_unlike() -> None:
    unknown = changed("reference.fingerprint", None)
    assert compare(unknown, unknown) == ["reference.fingerprint"]


def test_a_file_holds_the_three_parts_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "scores" / "a.json"
    write(result(), path)
    write(result(), path)
    assert list(json.loads(path.read_text())) == ["scores", "floor", "protocol"]
    assert read(path) == result()
    assert list(path.parent.iterdir()) == [path]


def test_an_unfinished_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write(result(), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the scores.*No space left"):
        write(replace(result(), scores={}), path)
    assert read(path) == result()
    assert list(tmp_path.iterdir()) == [path]


def test_a_score_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write(replace(result(), scores={"fid": float("nan")}), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a score file"),
        ('{"scores": {}, "floor": {}}', "not a score file"),
        ('{"scores": {"fid": "12"}, "floor": {}, "protocol": {}}', r"scores\.fid is '12', which is no number"),
        ('{"scores": {"fid": true}, "floor": {}, "protocol": {}}', "no number"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_missing_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the scores"):
        read(tmp_path / "absent.json")


@pytest.mark.parametrize("kind", ["device", "FIFO", "folder", "socket"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    plant(kind, tmp_path / "a.json", tmp_path / "victim")
    with pytest.raises(UserError, match=r"cannot read the scores \(.*not a regular file\)"):
        read(tmp_path / "a.json")


def test_a_nested_file_is_refused_in_a_few_words(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"scores":' * 50_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read(tmp_path / "a.json")
