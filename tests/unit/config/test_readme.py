"""The reference in configs/README.md is the generated one."""

from __future__ import annotations

from pathlib import Path

from diffpipe.config.reference import as_markdown
from diffpipe.experiment.config import Experiment

README = Path(__file__).parents[3] / "configs" / "README.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"


def test_the_readme_holds_the_reference_as_it_is_generated() -> None:
    reference = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert reference == as_markdown(Experiment), (
        "configs/README.md is out of date: replace all between its two `keys:` comments by the output of "
        "`diffpipe config keys --markdown`"
    )
