"""A run that another one guides, through the commands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support.commands import SHARDS, refused, succeeds, train


def test_another_run_guides_and_the_protocol_names_its_checkpoint(tmp_path: Path) -> None:
    run, guide = tmp_path / "run", tmp_path / "guide"
    words = ["data.resolution=8", "stage.conditional=false"]
    train(run, *words, "train.steps=2")
    flow = ["stage.prediction=flow", "stage.schedule={kind: flow}", "stage.sampler={steps: 3}"]
    train(guide, *words, *flow, "train.steps=1")
    succeeds("sample", run, tmp_path / "samples", "--n", 2, "--guide", guide, "--guidance", 2)
    made = json.loads((tmp_path / "samples" / "samples.json").read_text())["protocol"]["generated"]["sampler"]
    manifest = guide / "checkpoints" / "step-00000001" / "manifest.json"
    assert (made["guide"], made["guidance"]) == (hashlib.sha256(manifest.read_bytes()).hexdigest(), 2.0)
    shards, score = SHARDS / "test", tmp_path / "score.json"
    succeeds("eval", run, "--reference", shards, "--n", 4, "--guide", guide, "--guidance", 2, "--out", score)
    assert json.loads(score.read_text())["protocol"]["generated"]["sampler"] == made
    line = refused("eval", run, "--reference", shards, "--n", 4, "--guide", guide)
    assert "stage.sampler.guide has no effect at guidance 1" in line
    line = refused("sample", run, tmp_path / "out", "--guide", guide)
    assert "stage.sampler.guide has no effect at guidance 1; set stage.sampler.guidance, such as 2" in line
    line = refused("sample", run, tmp_path / "out", "--guide", tmp_path / "absent", "--guidance", 2)
    assert f"stage.sampler.guide.run: {tmp_path}/absent: no such directory" in line
