"""Lists of a tar's members that other tools have left beside it, held against what a scan has found.

`NAME.idx` is NVIDIA DALI's (`wds2idx`): text. Its first line is the version and the number of samples, and each
further line a sample: for each member its extension, the offset and the size of its data and, from v1.2 on, its name.
`NAME.tar.idx` is Megatron Energon's: the offset of each sample's first header and that of the archive's end, as
little-endian 64-bit words. Neither says what the bytes hash to, so neither spares a scan. But both tell what was in the
tar when they were made: a tar that has lost samples since then, and was closed again, is whole in itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffpipe.data.index.scan import Scan, split_name
from diffpipe.errors import UserError

_FIELDS = {"v1.1": 3, "v1.2": 4}


def lists_beside(path: str) -> list[str]:
    """The lists of the tar `path` that are there."""
    tar = Path(path)
    found = [tar.with_name(f"{tar.name}.idx")]
    text = tar.with_name(f"{tar.name.partition('.')[0]}.idx")
    if text != found[0] and text.is_file() and _is_text(text):  # many a file has the suffix .idx
        found.append(text)
    return [str(file) for file in found if file.is_file()]


def check_lists(path: str, scan: Scan) -> None:
    """Raise UserError where a list beside the tar does not say what the scan found."""
    for file in map(Path, lists_beside(path)):
        try:
            same = _text(file, scan) if _is_text(file) else _binary(file, scan)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable list of {path} ({error}); make it anew or remove it") from error
        if same is not None:
            raise UserError(
                f"{path} is not the tar that {file} lists: {same}; it was changed after the list was made: restore the "
                "tar, or remove the list"
            )


def _is_text(file: Path) -> bool:
    with file.open("rb") as lines:
        return lines.read(2) == b"v1"


def _text(file: Path, scan: Scan) -> str | None:
    """What differs from a list of wds2idx."""
    offset, size = scan.columns["member.offset"], scan.columns["member.size"]
    at = 0
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        version, samples = lines.readline().split()
        fields = _FIELDS.get(version)
        if fields is None:
            raise ValueError(f"version {version}")
        count = 0
        for count, line in enumerate(lines, start=1):
            words = line.split()
            if len(words) % fields:
                raise ValueError(f"line {count + 1} is cut, or a name in it has a space")
            for i in range(0, len(words), fields):
                if fields == 4 and split_name(words[i + 3]) is None:
                    continue
                if at == len(size) or (int(words[i + 1]), int(words[i + 2])) != (offset[at], size[at]):
                    return f"it has no {words[i]} of {words[i + 2]} bytes at byte {words[i + 1]} (line {count + 1})"
                at += 1
        if count != int(samples):
            raise ValueError(f"{count} samples of {samples}")
    return None if at == len(size) else f"it has {len(size)} members, not {at}"


def _binary(file: Path, scan: Scan) -> str | None:
    """What differs from a list of Energon."""
    data = file.read_bytes()
    if not data or len(data) % 8:
        raise ValueError(f"{len(data)} bytes")
    listed = np.frombuffer(data, dtype="<u8")
    if len(listed) != len(scan.starts) + 1:
        return f"it has {len(scan.starts)} samples, not {len(listed) - 1}"
    wrong = np.flatnonzero(listed != np.append(scan.starts, scan.end).astype(np.uint64))
    return f"sample {wrong[0]} does not begin at byte {listed[wrong[0]]}" if len(wrong) else None
