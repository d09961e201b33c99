"""A folder of links to the shards of another one, so that an index lies beside them where that cannot be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffpipe.errors import UserError

_BESIDE = ("codec.json",)  # names the encoder of shards of latents


def link_shards(directory: Path, names: Sequence[str], out: Path) -> None:
    """Make `out` a folder of symbolic links to these shards of `directory`. Earlier links in it are replaced.

    Raises UserError where it holds tars of its own, and where it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tars = sorted(out.glob("*.tar"))
        own = next((tar for tar in tars if not tar.is_symlink()), None)
        if own is not None:
            raise UserError(
                f"{out}: holds tars itself, such as {own.name}, whose index would be lost; give another --out"
            )
        beside = [name for name in _BESIDE if (directory / name).is_file()]
        for link in tars:
            link.unlink()
        for name in [*names, *beside]:
            link = out / name
            if link.is_symlink():
                link.unlink()
            link.symlink_to((directory / name).resolve())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
