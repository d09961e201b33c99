"""Access to the trackers of a run: credentials, and servers that answer. An offline mode needs neither.

A tracker that fails never stops a run, so each finding is a warning.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

from diffpipe.data.remote.urls import redacted
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.train.tracker_kinds import WANDB_ACCESS, WANDB_OFFLINE

_SECONDS = 5
_HUB = "https://huggingface.co"
_HUB_ACCESS = "no credentials; give HF_TOKEN or run `hf auth login`, or unset TRACKIO_SPACE_ID to keep the values here"


def no_access(names: Sequence[str]) -> Iterator[Finding]:
    """A finding for each installed tracker that would get no values. Asks their servers."""
    for name in names:
        if name in _CHECKS and find_spec(name) is not None and (complaint := _CHECKS[name]()) is not None:
            yield Finding("warning", f"the tracker {name} will get no values, and the run goes on without: {complaint}")


def _wandb() -> str | None:
    import wandb  # noqa: PLC0415 (an extra)
    from requests.utils import get_netrc_auth  # noqa: PLC0415 (wandb's)

    settings = wandb.setup().settings
    if settings.mode in WANDB_OFFLINE:
        return None
    if not (settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or get_netrc_auth(settings.base_url)):
        return WANDB_ACCESS
    return _no_answer(settings.base_url, "look at the network, or give WANDB_MODE=offline to keep the values here")


def _mlflow() -> str | None:
    remedy = "start it or correct MLFLOW_TRACKING_URI, or unset it to keep the values in the run directory"
    return _no_answer(os.environ.get("MLFLOW_TRACKING_URI", ""), remedy)


def _trackio() -> str | None:
    if os.environ.get("TRACKIO_SPACE_ID"):
        from huggingface_hub import get_token  # noqa: PLC0415 (trackio's)

        remedy = "look at the network, or unset TRACKIO_SPACE_ID to keep the values here"
        return _HUB_ACCESS if get_token() is None else _no_answer(_HUB, remedy)
    remedy = "start it or correct TRACKIO_SERVER_URL, or unset it to keep the values here"
    return _no_answer(os.environ.get("TRACKIO_SERVER_URL", ""), remedy)


_CHECKS: dict[str, Callable[[], str | None]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _no_answer(url: str, remedy: str) -> str | None:
    """A complaint where the server of a URL does not answer. A refusal is an answer. None for a path or a database."""
    if not url.startswith(("http://", "https://")):
        return None
    try:
        with contextlib.suppress(urllib.error.HTTPError, http.client.HTTPException):
            urllib.request.urlopen(redacted(url), timeout=_SECONDS).close()  # noqa: S310 (see above)
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # the tracker may trust other certificates
            return None
        words = getattr(reason, "strerror", None) or str(reason)
        return f"{redacted(url)} does not answer ({words}); {remedy}"
    return None
