"""The tars in a remote folder, as its store or the page at its URL lists them."""

from __future__ import annotations

import re
import urllib.parse

from diffpipe.data.remote.storage import BLOCK, STORES, RemoteFile, retry
from diffpipe.data.remote.urls import RemoteURL, join, parse, redacted, resolve
from diffpipe.errors import UserError

_LONGEST_PAGE = 1 << 24
_LINK = re.compile(r"""href=["']([^"']+)|(https?://[-\w@:%+.~#?&/=]+)""", re.ASCII | re.IGNORECASE)


def tars(folder: str) -> list[str]:
    """The URLs of the `*.tar` in a remote folder, sorted, as the store or the page at that URL lists them."""
    url = parse(folder)
    url = url._replace(path=url.path.rstrip("/") + "/")
    if url.scheme.startswith("http"):
        names = {urllib.parse.unquote(link.partition("?")[0].rpartition("/")[2]) for link in _links(url)}
    else:
        full_url, store = resolve(url), STORES[url.scheme]
        listing = retry(store, redacted(folder), lambda: store.system().ls(full_url, detail=False))
        names = {entry.rpartition("/")[2] for entry in listing}
    return [join(folder, name) for name in sorted(names) if name.endswith(".tar")]


def _links(folder: RemoteURL) -> list[str]:
    """The links on the page of a folder, but those to other folders. Raises UserError where it never ends.

    fsspec reads a page of any length, and looks for links in a time that grows with the cube of it.
    """
    with RemoteFile(str(folder)) as page:
        text = b""
        while len(text) <= _LONGEST_PAGE and (block := page.read(BLOCK)):
            text += block
    if len(text) > _LONGEST_PAGE:
        raise UserError(f"{page.name}: the list of its files is longer than {_LONGEST_PAGE} bytes; name the tars")
    _, _, here = redacted(str(folder)).partition("://")
    links = [quoted or bare for quoted, bare in _LINK.findall(text.decode("utf-8", "replace"))]
    return [link for link in links if "://" not in link or link.partition("://")[2].startswith(here)]
