"""`diffpipe pack SRC OUT`"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from PIL import ImageColor

from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from diffpipe.data.index.summary import describe
from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.hub import SCHEME, HubSource, is_saved
from diffpipe.data.packing.idx import IdxSource, find_idx
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import Source
from diffpipe.errors import UserError

# Which options go with which sources, and what each kind of source is called.
_FOLDERS, _ZIPS, _IDX, _IDX_FILE = "image folders", "zip archives", "folders of idx files", "idx files"
_CIFAR, _HUB, _SAVED, _SHARDS = "the CIFAR-10 archive", "Hugging Face datasets", "saved datasets", "shards"
_TAKES = {
    "labels": (_IDX_FILE,),
    "labels_file": (_FOLDERS, _ZIPS),
    "split": (_IDX, _CIFAR, _HUB, _SAVED),
    "classes": (_IDX_FILE, _IDX, _FOLDERS, _ZIPS),
    "columns": (_HUB, _SAVED),
}


class _StoppedError(UserError):
    status = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a folder of images or of class folders, nested at will, or a zip archive of one; a folder with the idx "
        "files of an MNIST, or an images idx file; cifar-10-python.tar.gz; a Hugging Face dataset, as hf:NAME or "
        "hf:NAME:CONFIG or a folder that save_to_disk wrote; or indexed shards",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it appears whole or not at all")
    what = parser.add_argument_group("what is in SRC")
    what.add_argument(
        "--labels-file",
        type=Path,
        metavar="FILE",
        help="labels of images by their paths relative to SRC, in place of class folders: CSV or TSV (columns path and "
        "label, or those two without a header), JSON lines ({path, label}), or text (a path, a space, a label)",
    )
    what.add_argument("--labels", type=Path, metavar="FILE", help="the labels idx file of an images idx file")
    what.add_argument(
        "--split", metavar="NAME", help="train (the default) or test, or a split of a Hugging Face dataset"
    )
    what.add_argument("--classes", metavar="A,B,C", help="names of the classes, for idx and labels files")
    what.add_argument("--columns", metavar="IMAGE,LABEL", help="columns of a Hugging Face dataset that has several")
    how = parser.add_argument_group("how images are written")
    how.add_argument("--resolution", type=_positive, metavar="N", help="resize and crop at the centre to N x N")
    how.add_argument(
        "--format",
        choices=["keep", "png", "jpeg", "webp"],
        default="keep",
        help="keep (the default): PNG, JPEG and WebP files of the right size as they are, and PNG for the rest",
    )
    how.add_argument("--quality", type=_quality, metavar="Q", help="of JPEG and WebP, 1 to 100 (95)")
    how.add_argument("--background", type=_colour, metavar="COLOUR", help="under transparent pixels: white, #102030 …")
    which = parser.add_argument_group("which images").add_mutually_exclusive_group()
    which.add_argument("--only", type=_labels, default=[], metavar="0,1,2", help="the images with these labels alone")
    which.add_argument(
        "--leave-out", type=_labels, default=[], metavar="3", help="all images but those with these labels"
    )
    parser.add_argument("--per-class", type=_positive, metavar="N", help="N images of each class, chosen by the seed")
    parser.add_argument(
        "--max-bad",
        type=_count,
        default=0,
        metavar="N",
        help="leave out up to N images that cannot be read or decoded, each with a line that says why (0)",
    )
    parser.add_argument(
        "--split-by",
        metavar="GROUP",
        help="write OUT/train and OUT/test, no group in both: 'group' is the first folder of a path, 'column:NAME' a "
        "column of the labels file or the dataset, anything else a regular expression whose first parentheses find the "
        "group in the path. A hash of the group's name decides, so that it stays on its side whatever else there is",
    )
    parser.add_argument("--test-fraction", type=_fraction, metavar="F", help="of the groups, to test on (0.1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffle and the choice (0)")
    parser.add_argument("--shard-samples", type=_positive, default=1000, metavar="N", help="samples a shard (1000)")
    parser.add_argument("--prefix", default="shard", metavar="WORD", help="shards are named WORD-000000.tar (shard)")
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes, of which the bytes do not depend (as many as CPUs)"
    )


def run(args: argparse.Namespace) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # one process of a launched job does the work, with workers of its own
    if args.quality is not None and args.format not in ("jpeg", "webp"):
        raise UserError("--quality is for --format jpeg and webp; give one of them")
    if args.test_fraction is not None and args.split_by is None:
        raise UserError("--test-fraction is for --split-by, which says what must not be torn apart; give it too")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        source = _source(args)
        bad = pack(
            source,
            args.out,
            encoding=Encoding(args.resolution, args.format, args.quality or 95, args.background),
            split=Split(args.split_by, args.test_fraction or 0.1) if args.split_by else None,
            shard_samples=args.shard_samples,
            only=args.only,
            leave_out=args.leave_out,
            per_class=args.per_class,
            seed=args.seed,
            prefix=args.prefix,
            workers=len(os.sched_getaffinity(0)) if args.workers is None else args.workers,
            max_bad_samples=args.max_bad,
        )
    except KeyboardInterrupt:
        raise _StoppedError(f"stopped by a signal; {args.out} was not made, and nothing is left of it") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    for folder in [args.out / "train", args.out / "test"] if args.split_by else [args.out]:
        print(describe(folder, sorted(path.name for path in folder.glob("*.tar"))))
    if isinstance(source, FolderSource) and source.skipped:
        print(f"{args.src}: skipped {source.skipped} files that are no images by their names")
    if isinstance(source, FolderSource) and source.unlabelled:
        print(f"{args.src}: left out {source.unlabelled} images that {args.labels_file} does not name")
    if bad:
        print(f"{args.src}: left out {len(bad)} bad sample{'s' if len(bad) > 1 else ''}", flush=True)
    for reason in bad:
        print(f"left out: {reason}", file=sys.stderr)


def _source(args: argparse.Namespace) -> Source:
    kind = _kind(args.src)
    for option, kinds in _TAKES.items():
        if getattr(args, option) and kind not in kinds:
            name = option.replace("_", "-")
            raise UserError(f"--{name} is for {', '.join(kinds)}, but SRC is none of these ({kind}); leave it out")
    classes = args.classes.split(",") if args.classes else None
    if classes and kind in (_FOLDERS, _ZIPS) and args.labels_file is None:
        raise UserError(
            "--classes is for idx files and labels files; the classes of an image folder are its subfolders"
        )
    if kind == _SHARDS:
        return ShardSource(load(args.src))
    if kind in (_HUB, _SAVED):
        return HubSource(args.src, args.split, args.columns.split(",") if args.columns else ())
    place = Path(args.src)
    if kind == _CIFAR:
        return CifarSource(place, args.split or "train")
    if kind == _IDX_FILE:
        return IdxSource(place, args.labels, classes)
    if kind == _IDX:
        found = find_idx(place, "t10k" if args.split == "test" else args.split or "train")
        if found is None:
            raise UserError(
                f"{place}: no {args.split or 'train'}-images-idx3-ubyte and labels in it; check --split and SRC"
            )
        return IdxSource(*found, classes)
    return FolderSource(place, args.labels_file, classes)


def _kind(src: str) -> str:
    """What kind of source it is. Raises UserError where it is nothing."""
    place = Path(src)
    if src.startswith(SCHEME):
        return _HUB
    if not place.exists():
        raise UserError(f"{src}: no such file or folder; give an image folder, an archive, an idx file or hf:NAME")
    if place.suffix == ".tar" or (place / INDEX_NAME).exists():
        return _SHARDS
    if place.is_file():
        return {".zip": _ZIPS, ".gz": _gzipped(place), ".tgz": _CIFAR}.get(place.suffix.lower(), _IDX_FILE)
    if is_saved(place):
        return _SAVED
    if find_idx(place, "train") or find_idx(place, "t10k"):
        return _IDX
    if next(place.glob("*.tar"), None) is not None:
        raise UserError(f"{src}: holds tars without an index; run: diffpipe index {src}")
    return _FOLDERS


def _gzipped(place: Path) -> str:
    return _CIFAR if place.name.lower().endswith(".tar.gz") else _IDX_FILE


def _labels(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of labels; they are numbers, such as 0,1,2")
    return [int(word) for word in words]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _quality(text: str) -> int:
    value = _count(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not 1 to 100")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _colour(text: str) -> str:
    try:
        if len(ImageColor.getrgb(text)) == 3:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no opaque colour; give a name such as black, or #rrggbb")
