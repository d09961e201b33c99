"""The names of remote files: URLs whose secrets stand in the environment.

What a URL may hold that nobody else should see, its credentials and its query, is written `${NAME}`. So a config, a
log, an error or a checkpoint never has more than a name; `redacted` drops even that.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import NamedTuple

from diffpipe.errors import UserError

SCHEMES = ("http", "https", "s3", "gs")

_PARTS = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:(?P<user>[^/?#]*)@)?(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.S
)
_NAME = re.compile(r"\$\{(\w+)\}")
_USER = re.compile(r"([^:@]*:)?\$\{\w+\}")
_QUERY = re.compile(r"\?([\w.-]+=)?\$\{\w+\}(&([\w.-]+=)?\$\{\w+\})*")
_HOST = re.compile(r"([^:\[\]]*|\[[0-9A-Fa-f:.]+\])(:\d+)?")


class Address(NamedTuple):
    """A URL in its parts. user and rest (the query) are empty or hold `${NAME}` in place of each secret."""

    scheme: str
    user: str
    host: str
    path: str
    rest: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.user}{'@' if self.user else ''}{self.host}{self.path}{self.rest}"


def is_remote(place: str) -> bool:
    """Whether a place is a URL rather than a path."""
    return _PARTS.match(place) is not None


def redacted(url: str) -> str:
    """The URL without credentials and query: the only form that a log, an error or a file may hold."""
    match = _PARTS.match(url)
    assert match is not None
    return f"{match['scheme']}://{match['host']}{match['path']}"


def parse(url: str) -> Address:
    """The parts of a URL that can be read. Raises UserError where it is none, or holds a secret itself."""
    match = _PARTS.fullmatch(url)
    assert match is not None
    address = Address(*(match[name] or "" for name in Address._fields))
    address = address._replace(scheme=address.scheme.lower())
    if address.scheme not in SCHEMES:
        raise UserError(f"{address.scheme}://: no such place can be read; known are {', '.join(SCHEMES)} and paths")
    if not _HOST.fullmatch(address.host) or not address.host:
        raise UserError(
            f"{address.scheme}://...: not a URL: what stands after :// is no host or bucket; write / ? # and @ in a "
            "password or a name as %2F %3F %23 and %40"
        )
    secret = (address.user and not _USER.fullmatch(address.user)) or (
        address.rest and not _QUERY.fullmatch(address.rest)
    )
    if secret:
        raise UserError(
            f"{redacted(url)}: its URL has a password or a query in it, which would stand in logs and checkpoints; put "
            "${NAME} in the place of each value, such as ?token=${NAME}, and set that environment variable, or give "
            "the password in ~/.netrc"
        )
    return address


def beside(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`."""
    address = parse(url)
    return str(address._replace(path=f"{address.path.rstrip('/')}/{name}"))


def folder(url: str) -> str:
    """The URL of the folder that a file is in."""
    address = parse(url)
    return str(address._replace(path=address.path.rpartition("/")[0]))


def resolved(address: Address) -> str:
    """The URL with its secrets in it."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise UserError(f"{redacted(str(address))}: the environment variable {match[1]} is not set; set it")
        return found

    user = _NAME.sub(lambda match: urllib.parse.quote(value(match), safe=""), address.user)
    return str(address._replace(user=user, rest=_NAME.sub(value, address.rest)))
