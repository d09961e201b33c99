"""The remote folders that this user allows an index to refer to: `--allow-base URL` on the command line.

They are kept like plug-ins: by the process, not by a config, which is stored in a run and may be somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffpipe.data.remote.urls import RemoteURL, is_remote, leads_elsewhere, parse, redacted
from diffpipe.errors import UserError

_allowed: list[str] = []


def allow(url: str) -> None:
    """Allow indices to say that their shards lie in this remote folder, or below it. Raises UserError.

    Its `${NAME}`s are used for these shards: the base in an index never has any of its own.
    """
    if not is_remote(url):
        raise UserError(f"--allow-base {url}: not a URL; give that of a folder of shards, such as https://host/shards")
    parse(url)
    if url not in _allowed:
        _allowed.append(url)


def options() -> list[str]:
    """The words of the command line that allow the same folders in another process."""
    return [word for url in _allowed for word in ("--allow-base", url)]


def url_of(base: str, named: Sequence[str], index: str) -> str:
    """The URL of the folder `base` of an index, by the first URL of this user's that has its host and folder.

    named: the URLs that he named for this index, beside the allowed ones. index: its place, for messages. Raises
    UserError where there is none.
    """
    try:
        place = parse(redacted(base))
    except UserError as error:
        raise UserError(f"{index}: says where its shards lie, but {error}") from error
    for url in [*named, *_allowed]:
        folder = parse(url)
        if _contains(folder, place):
            return str(folder._replace(path=place.path))
    raise UserError(
        f"{index}: says that its shards lie at {place}, which you have not named yourself; if you trust it, add "
        f"--allow-base {place}"
    )


def _contains(folder: RemoteURL, place: RemoteURL) -> bool:
    if (folder.scheme, folder.host.lower()) != (place.scheme, place.host.lower()):
        return False
    above, below = (url.path.strip("/").split("/") if url.path.strip("/") else [] for url in (folder, place))
    return below[: len(above)] == above and not any(map(leads_elsewhere, below[len(above) :]))
