"""The weights of feature networks that scores during training will need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.metrics.features import INCEPTION_VARIABLE, find_network, inception_path, lite0_weights, require_inception
from diffpipe.metrics.features import inception_remedy as remedy
from diffpipe.metrics.names import parse_metric


def missing_weights(experiment: Experiment) -> Iterator[Finding]:
    """Findings on feature networks of eval.metrics whose weights are not here, or are others."""
    if not experiment.eval.every:
        return
    extractors = dict[str, None]()
    for name in experiment.eval.metrics:
        with contextlib.suppress(UserError):  # a wrong name is refused with the stage
            extractors[parse_metric(name).extractor] = None
    for extractor in extractors:
        path = inception_path()
        if extractor == "inception" and find_spec("cleanfid") is None:
            yield Finding(
                "error",
                f"at step {experiment.eval.every}, eval.metrics needs clean-fid, which is not installed; install it "
                f"with: pip install 'diffpipe[eval]'",
            )
            continue
        if extractor == "inception" and not path.exists() and not os.environ.get(INCEPTION_VARIABLE):
            yield Finding(
                "warning",
                f"eval.metrics needs the Inception weights, which the job downloads at step {experiment.eval.every}: "
                f"without a network it ends there; {remedy(path)}",
            )
            continue
        try:
            if extractor == "inception":
                require_inception(path)
            elif extractor == "efficientnet_lite0":
                lite0_weights()
            else:
                find_network(extractor, ("efficientnet_lite0", "inception"))
        except (UserError, OSError) as error:
            yield Finding("error", f"at step {experiment.eval.every}, eval.metrics: {error}")
