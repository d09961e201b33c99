"""Indices of a tar that other tools have written beside it, compared with the result of a scan.

`NAME.idx` is NVIDIA DALI's (`wds2idx`), a text. Its first line is the version and the number of samples, and each
further line is a sample: for each member its extension, the offset and the size of its data and, from v1.2 on, its
name. `NAME.tar.idx` is Megatron Energon's: the offset of each sample's first header and of the archive's end, as
little-endian 64-bit words. Neither has hashes, so the tar is scanned all the same. But both record what the tar
contained: a tar that has lost samples since then, and was closed properly, looks whole by itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffpipe.data.index.scan import Scan, split_name
from diffpipe.errors import UserError
from diffpipe.files import read_regular
from diffpipe.plural import plural

_LONGEST = 1 << 30  # bytes of a list
_FIELDS = {"v1.1": 3, "v1.2": 4}


def external_indices(path: str) -> list[str]:
    """The paths of the external indices beside the tar `path`."""
    tar = Path(path)
    paths = [tar.with_name(f"{tar.name}.idx")]
    text = tar.with_name(f"{tar.name.partition('.')[0]}.idx")
    if text != paths[0] and text.is_file() and _is_text(text):  # many a file has the suffix .idx
        paths.append(text)
    return [str(file) for file in paths if file.is_file()]


def check_external_indices(path: str, scan: Scan) -> None:
    """Raise UserError where an external index beside the tar does not match the scan."""
    for file in map(Path, external_indices(path)):
        try:
            if file.stat().st_size > _LONGEST:
                raise ValueError(f"it has {plural(file.stat().st_size, 'byte')}")
            difference = _text_difference(file, scan) if _is_text(file) else _binary_difference(file, scan)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable list of {path} ({error}); write it again or remove it") from error
        if difference is not None:
            raise UserError(
                f"{path} is not the tar that {file} lists: {difference}; it was changed after that: restore "
                "the tar, or remove the list"
            )


def _is_text(file: Path) -> bool:
    with file.open("rb") as lines:
        return lines.read(2) == b"v1"


def _text_difference(file: Path, scan: Scan) -> str | None:
    """The first difference between a list of wds2idx and the scan, or None."""
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
                    return (
                        f"it has no {words[i]} of {plural(words[i + 2], 'byte')} at byte {words[i + 1]} (line "
                        f"{count + 1})"
                    )
                at += 1
        if count != int(samples):
            raise ValueError(f"{count} of {plural(samples, 'sample')}")
    return None if at == len(size) else f"it has {plural(len(size), 'member')}, not {at}"


def _binary_difference(file: Path, scan: Scan) -> str | None:
    """The first difference between a list of Energon and the scan, or None."""
    data = read_regular(file, follow_links=True)
    if not data or len(data) % 8:
        raise ValueError(plural(len(data), "byte"))
    listed = np.frombuffer(data, dtype="<u8")
    if len(listed) != len(scan.starts) + 1:
        return f"it has {plural(len(scan.starts), 'sample')}, not {len(listed) - 1}"
    wrong = np.flatnonzero(listed != np.append(scan.starts, scan.end).astype(np.uint64))
    return f"sample {wrong[0]} does not begin at byte {listed[wrong[0]]}" if len(wrong) else None
