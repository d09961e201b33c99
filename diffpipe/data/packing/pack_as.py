"""Pack a source in the form that the user names: shards, or the archive of StyleGAN's and EDM's dataset_tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from diffpipe.data.index.summary import ShardsSummary, describe
from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.edm_zip import pack_edm_zip
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.open_source import describe_labels, unpacked_files
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.source import Source
from diffpipe.errors import UserError

Form = Literal["shards", "edm-zip"]
_ONLY_OF_SHARDS = ("shard_samples", "prefix")


def pack_as(
    form: Form, source: Source, out: Path, *, encoding: Encoding, split: Split | None, **options: Any
) -> tuple[list[ShardsSummary] | str, list[str], list[str]]:
    """Write `out`. options: those of `pack`; an archive has no shards, and leaves their names and sizes out.

    Returns a summary of each folder of shards, or a line on the archive; notes on the source; and the reason for each
    bad sample that was skipped. Raises UserError.
    """
    if form == "edm-zip":
        if split is not None:
            raise UserError(
                "--split-by writes shards; pack each part into a zip of its own, with --only or a labels file"
            )
        options = {name: value for name, value in options.items() if name not in _ONLY_OF_SHARDS}
        packed, bad = pack_edm_zip(source, out, encoding=encoding, **options)
    else:
        bad = pack(source, out, encoding=encoding, split=split, **options)
        folders = [out] if split is None else [out / "train", out / "test"]
        packed = [describe(folder, sorted(path.name for path in folder.glob("*.tar"))) for folder in folders]
    labels = describe_labels(source)
    return packed, [*([] if labels is None else [labels]), *unpacked_files(source, bad)], bad
