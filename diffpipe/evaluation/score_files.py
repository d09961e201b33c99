"""The names of score files: two scores have one name only where they follow one protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpipe.errors import UserError

# They do not make a score another one: fingerprints say which images are in a place.
_LEFT_OUT = {"date", "versions", "shards", "folder"}


def score_file(home: Path, kind: str, step: int, n: int, protocol: Mapping[str, Any]) -> Path:
    """The file of a score in the scores/ of the run in `home`.

    kind: the command, such as `eval`. n: the images that were measured. The hash in the name is over the protocol but
    for its date, the versions and the paths of images.
    """
    require_own_folder(home)
    return home / "scores" / f"{kind}-step-{step:08d}-n{n}-{protocol_hash(protocol)}.json"


def require_own_folder(run: Path) -> None:
    """Raise UserError where the scores/ of a run, or of that of a checkpoint, is a link: it leads out of the run."""
    for home in (run, run.parent.parent) if run.parent.name == "checkpoints" else (run,):
        if (home / "scores").is_symlink():
            raise UserError(
                f"{home / 'scores'}: a symbolic link, through which no score is written: a run of somebody else's may "
                "lead anywhere; give --out, or put a folder in its place"
            )


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the sha256 of what defines a score in its protocol."""
    return hashlib.sha256(json.dumps(_defining(protocol), sort_keys=True).encode()).hexdigest()[:12]


def _defining(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _defining(entry) for key, entry in value.items() if key not in _LEFT_OUT}
    return value
