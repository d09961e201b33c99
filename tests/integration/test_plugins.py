"""The plug-in of configs/README.md trains, resumes, samples and scores through the real commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import CONFIG, HOME, TINY_RUN, refused, succeeds, tensors

STAGE = "stage={kind: rectified_flow, width: 16, sampler: {steps: 3}}"
SMALL = [STAGE, *TINY_RUN, "data.resolution=8", "data.workers=0", "sample.every=0"]


OTHERS = '''
"""A packing source and a tracker."""
import json
from pathlib import Path
import numpy as np
from accelerate.tracking import GeneralTracker, on_main_process
from diffpipe.data.packing.source import PackItem


class Squares:
    """Grey squares, as many as the path says."""

    labels = classes = None

    def __init__(self, path):
        self.n = int(path)

    def __len__(self):
        return self.n

    def item(self, i):
        return PackItem(f"square {i}", np.full((8, 8), 20 * i, np.uint8))


class Lines(GeneralTracker):
    name, requires_logging_directory = "lines", True

    def __init__(self, run_dir):
        super().__init__()
        self.path = Path(run_dir) / "lines.jsonl"

    tracker = None

    @on_main_process
    def store_init_configuration(self, values):
        pass

    @on_main_process
    def log(self, values, step, **_):
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\\n")


diffpipe_packing_sources = {"squares": Squares}
diffpipe_trackers = {"lines": Lines}
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = (HOME / "configs" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page.partition("## Your own stage")[2], re.DOTALL | re.MULTILINE)
    assert len(block.splitlines()) <= 80
    path = tmp_path_factory.mktemp("plugin") / "rectified_flow.py"
    path.write_text(block, encoding="utf-8")
    return str(path)


def test_a_stage_in_a_file_of_the_users_own_goes_through_every_command(
    plugin: str, tmp_path: Path, few_test_images: Path
) -> None:
    runs = {"straight": [4], "resumed": [2, 4]}
    for name, steps in runs.items():
        for n in steps:
            words = ["train", CONFIG, *SMALL, f"run.dir={tmp_path / name}", f"train.steps={n}", "--plugin", plugin]
            succeeds(*words, processes=2)
    last = {name: tensors(tmp_path / name / "checkpoints" / "step-00000004") for name in runs}
    assert last["straight"].keys() == last["resumed"].keys()
    for key, value in last["straight"].items():
        np.testing.assert_array_equal(value, last["resumed"][key], err_msg=key)

    run = tmp_path / "straight"
    succeeds("--plugin", plugin, "sample", run, tmp_path / "samples", "--n", 4, "--steps", 2)
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 4
    words = ["eval", run, "--reference", few_test_images, "--n", 6, "--metrics", "fd_efficientnet_lite0"]
    succeeds(*words, "--out", tmp_path / "score.json", f"--plugin={plugin}")
    score = json.loads((tmp_path / "score.json").read_text())
    assert np.isfinite(score["scores"]["fd_efficientnet_lite0"])

    message = refused("sample", run, tmp_path / "again", "--n", 4)
    assert "stage.kind is 'rectified_flow'; it is one of 'adversarial'" in message
    assert "--plugin MODULE" in message


def test_a_packing_source_and_a_tracker_come_from_a_plugin(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS)
    both = ["--plugin", tmp_path / "others.py", "--plugin", plugin]
    succeeds("pack", "squares:10", tmp_path / "shards", *both)
    words = [*SMALL, f"data.train={tmp_path / 'shards'}", "data.labels=false", "data.test=null", "train.steps=2"]
    succeeds("train", CONFIG, *words, f"run.dir={tmp_path / 'run'}", "train.trackers=[lines]", *both)
    lines = [json.loads(line) for line in (tmp_path / "run" / "lines.jsonl").read_text().splitlines()]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == logged
    assert not (tmp_path / "run" / "diffpipe").exists()
    assert "train.trackers.0 is 'lines'; it is one of 'tensorboard'" in refused(
        "train", CONFIG, "run.dir=x", "train.trackers=[lines]"
    )
