"""URLs of remote files, without secrets in them.

Credentials and query values are written `${NAME}`: the name of an environment variable. So a config, a log, an error
message or a checkpoint never holds more than the name; `redacted` drops even that.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import NamedTuple

from diffpipe.errors import UserError, raise_first
from diffpipe.files import url_scheme

SCHEMES = ("http", "https", "s3", "gs")

_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:(?P<user>[^/?#]*)@)?(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.S
)
_NOT_IN_NAME = re.compile(r"[/\\?#\x00-\x1f\x7f]")
_MOST_DECODINGS = 5
_NAME = re.compile(r"\$\{(\w+)\}")
_USER = re.compile(r"([^:@]*:)?\$\{\w+\}")
_QUERY = re.compile(r"\?([\w.-]+=)?\$\{\w+\}(&([\w.-]+=)?\$\{\w+\})*")
_HOST = re.compile(r"([^:\[\]]*|\[[0-9A-Fa-f:.]+\])(:\d+)?")


class RemoteURL(NamedTuple):
    """The parts of a URL. user and rest (the query) are empty or have `${NAME}` in place of each secret."""

    scheme: str
    user: str
    host: str
    path: str
    rest: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.user}{'@' if self.user else ''}{self.host}{self.path}{self.rest}"


def is_remote(path: str) -> bool:
    """Whether this is a URL rather than a path."""
    return url_scheme(path) is not None


def redacted(url: str) -> str:
    """The URL without credentials and query: the only form that a log, an error or a file may hold."""
    match = _PARTS.match(url)
    assert match is not None
    return f"{match['scheme']}://{match['host']}{match['path']}"


def parse(url: str) -> RemoteURL:
    """The parts of a URL. Raises UserError where it is malformed, of an unknown scheme, or contains a secret itself."""
    match = _PARTS.fullmatch(url)
    assert match is not None
    parts = RemoteURL(*(match[name] or "" for name in RemoteURL._fields))
    parts = parts._replace(scheme=parts.scheme.lower())
    if parts.scheme not in SCHEMES:
        raise UserError(f"{parts.scheme}://: this scheme cannot be read; known are {', '.join(SCHEMES)} and paths")
    if not _HOST.fullmatch(parts.host) or not parts.host:
        raise UserError(
            f"{parts.scheme}://...: not a URL: no host or bucket follows ://; write / ? # and @ in a password or a "
            "name as %2F %3F %23 and %40"
        )
    secret = (parts.user and not _USER.fullmatch(parts.user)) or (parts.rest and not _QUERY.fullmatch(parts.rest))
    if secret:
        raise UserError(
            f"{redacted(url)}: it has a password or a query in it, which would be written to logs and checkpoints; "
            "put ${NAME} in place of each value, such as ?token=${NAME}, and set that environment variable, or put the "
            "password into ~/.netrc"
        )
    return parts


def join(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`. Raises UserError where the name would lead elsewhere, or add a query."""
    parts = parse(url)
    if name == "" or leads_elsewhere(name):
        raise UserError(
            f"{redacted(url)}: {name[:80]!r} is not the name of a file in a remote folder; give the file another name"
        )
    return str(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def leads_elsewhere(part: str) -> bool:
    """Whether a part of a path is more than a name, for a server that decodes it once or several times.

    `..%2F..%2Fx.tar` and `%252e%252e` are names in a URL, and paths on many a server.
    """
    for _ in range(_MOST_DECODINGS):
        part, encoded = urllib.parse.unquote(part), part
        if part == encoded:
            break
    return part.partition(";")[0] in (".", "..") or _NOT_IN_NAME.search(part) is not None


def parent(url: str) -> str:
    """The URL of the folder that contains a file."""
    parts = parse(url)
    return str(parts._replace(path=parts.path.rpartition("/")[0]))


def resolve(url: RemoteURL) -> str:
    """The URL with the values of its environment variables in it: never print it."""

    unset = [name for name in _NAME.findall(f"{url.user}{url.rest}") if name not in os.environ]
    raise_first(
        [UserError(f"{redacted(str(url))}: the environment variable {name} is not set; set it") for name in unset]
    )

    def value(match: re.Match[str]) -> str:
        return os.environ[match[1]]

    user = _NAME.sub(lambda match: urllib.parse.quote(value(match), safe=""), url.user)
    return str(url._replace(user=user, rest=_NAME.sub(value, url.rest)))
