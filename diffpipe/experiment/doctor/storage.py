"""Access to remote shards: the libraries that read them, and credentials, without a request to any server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffpipe.data.remote.storage import ACCESS, STORES
from diffpipe.data.remote.urls import is_remote, parse, redacted, resolve
from diffpipe.errors import UserError, all_of
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding

_VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
# By environment variable that names another place.
_FILES = {
    "s3": {"AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials", "AWS_CONFIG_FILE": ".aws/config"},
    "gs": {"CLOUDSDK_CONFIG": ".config/gcloud/application_default_credentials.json"},
}


def remote_urls(experiment: Experiment) -> list[str]:
    """The URLs among the shards of a run."""
    data = experiment.data
    groups = [data.trained_on, data.test or []]
    return [url for group in groups for url in ([group] if isinstance(group, str) else group) if is_remote(url)]


def access(urls: Sequence[str], environ: Mapping[str, str], home: Path) -> Iterator[Finding]:
    """Findings on URLs whose library or whose secret is missing, or that no credentials are there for."""
    for url in urls:
        parts = parse(url)
        try:
            all_of(lambda: resolve(parts), STORES[parts.scheme].system)  # noqa: B023 (called at once)
        except UserError as error:
            yield from (Finding("error", fault) for fault in error.faults)
        yield from _credentials(parts.scheme, redacted(url), environ, home)


def _credentials(scheme: str, url: str, environ: Mapping[str, str], home: Path) -> Iterator[Finding]:
    key = environ.get("GOOGLE_APPLICATION_CREDENTIALS") if scheme == "gs" else None
    if key and not Path(key).is_file():
        yield Finding("error", f"{url}: GOOGLE_APPLICATION_CREDENTIALS is {key}, where no file is; {ACCESS['gs']}")
    elif scheme in ACCESS and not any(environ.get(name) for name in _VARIABLES[scheme]):
        places = [Path(environ.get(name) or home / place) for name, place in _FILES[scheme].items()]
        if not any(place.exists() for place in places):
            yield Finding(
                "warning",
                f"{url}: no credentials in the environment, nor at {' or '.join(map(str, places))}, which is right "
                f"only where the machine has a role of its own or the bucket is public; else {ACCESS[scheme]}",
            )
