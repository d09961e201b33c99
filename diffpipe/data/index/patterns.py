"""Names of local tars: paths, directories, globs and brace patterns."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

from diffpipe.data.decode.image_files import is_image_name
from diffpipe.data.remote.urls import is_remote, redacted
from diffpipe.errors import UserError, shell_command
from diffpipe.files import user_path

NO_SHARDS = "no shards are named; give a tar, a folder of *.tar, a URL of one, a glob or a brace pattern"


def expand_patterns(patterns: str | Sequence[str]) -> list[str]:
    """The paths of the local tars that `patterns` name. Raises UserError where one is missing or named twice."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for pattern in patterns for word in expand_braces(pattern) for path in local_tars(word)]
    if not paths:
        raise UserError(NO_SHARDS)
    require_distinct([os.path.realpath(path) for path in paths])
    return paths


def expand_braces(pattern: str) -> list[str]:
    """The paths that a brace pattern stands for, or the one path that exists under this name."""
    path = str(user_path(pattern))
    return [path] if Path(path).exists() else expand_urls(path)


def local_tars(word: str) -> list[str]:
    """The existing tars that a path, directory or glob names."""
    if Path(word).is_dir():
        tars = sorted(str(path) for path in Path(word).glob("*.tar"))
    elif Path(word).exists():
        tars = [word]
    else:
        tars = sorted(glob.glob(word))  # noqa: PTH207 (pathlib has no absolute patterns)
    if not tars and _holds_images(Path(word)):
        command = shell_command("diffpipe", "pack", word)
        raise UserError(f"{word}: holds images and no shards; pack them first: {command} OUT, and give OUT")
    if not tars:
        raise UserError(f"{word}: no such shards; give a tar, a folder of *.tar, a glob or a brace pattern")
    return tars


def _holds_images(folder: Path) -> bool:
    """Whether one of the first files below the folder is an image by its name."""
    files = itertools.islice(folder.rglob("*"), 1000) if folder.is_dir() else ()
    return any(is_image_name(path.name) for path in files)


def require_distinct(paths: Sequence[str]) -> None:
    """Raise UserError where a path or URL is among `paths` twice."""
    repeated = next((path for path, n in Counter(paths).items() if n > 1), None)
    if repeated is not None:
        shown = redacted(repeated) if is_remote(repeated) else repeated
        raise UserError(f"{shown} is named twice; name each shard once")
