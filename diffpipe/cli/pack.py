"""`diffpipe pack SRC OUT`"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli.index import describe
from diffpipe.contract import UserError
from diffpipe.data.idx import find_idx
from diffpipe.data.index import load
from diffpipe.data.pack import FolderSource, IdxSource, ShardSource, Source, pack
from diffpipe.data.table import INDEX_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "src",
        type=Path,
        metavar="SRC",
        help="a folder of images or of class folders, a folder with the idx files of an MNIST, an images idx file, or "
        "indexed shards to choose from",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="the labels idx file of an images idx file")
    parser.add_argument("--split", choices=["train", "t10k"], help="which idx files of a folder (train)")
    parser.add_argument("--classes", metavar="A,B,C", help="names of the classes of idx files")
    parser.add_argument("--resolution", type=_positive, metavar="N", help="resize and crop at the centre to N x N")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", type=_labels, default=[], metavar="0,1,2", help="the images with these labels alone")
    which.add_argument(
        "--leave-out", type=_labels, default=[], metavar="3", help="all images but those with these labels"
    )
    parser.add_argument("--per-class", type=_positive, metavar="N", help="N images of each class, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffle and the choice (0)")
    parser.add_argument("--shard-samples", type=_positive, default=1000, metavar="N", help="samples a shard (1000)")
    parser.add_argument("--prefix", default="shard", metavar="WORD", help="shards are named WORD-000000.tar (shard)")


def run(args: argparse.Namespace) -> None:
    source = _source(args)
    pack(
        source,
        args.out,
        shard_samples=args.shard_samples,
        only=args.only,
        leave_out=args.leave_out,
        per_class=args.per_class,
        seed=args.seed,
        prefix=args.prefix,
    )
    print(describe(args.out, sorted(path.name for path in args.out.glob("*.tar"))))
    if isinstance(source, FolderSource) and source.skipped:
        print(f"{args.src}: skipped {source.skipped} files that are no images by their names")


def _source(args: argparse.Namespace) -> Source:
    if not args.src.exists():
        raise UserError(f"{args.src}: no such file or folder; give an image folder or an idx file")
    classes = args.classes.split(",") if args.classes else None
    if args.src.suffix == ".tar" or (args.src / INDEX_NAME).exists():
        for option in ("labels", "split", "classes"):
            if getattr(args, option):
                raise UserError(f"--{option} is for idx files; SRC is shards, which keep their labels and classes")
        return ShardSource(load(str(args.src)), args.resolution)
    if args.src.is_file():
        if args.split:
            raise UserError("--split is for a folder with idx files; SRC is a file")
        return IdxSource(args.src, args.labels, classes, args.resolution)
    if args.labels:
        raise UserError("--labels is for an images idx file; SRC is a folder")
    found = find_idx(args.src, args.split or "train")
    if found is not None:
        return IdxSource(*found, classes, args.resolution)
    if args.split or find_idx(args.src, "t10k"):
        raise UserError(
            f"{args.src}: no {args.split or 'train'}-images-idx3-ubyte and labels in it; check --split and SRC"
        )
    if classes:
        raise UserError("--classes is for idx files; the classes of an image folder are its subfolders")
    return FolderSource(args.src, args.resolution)


def _labels(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of labels; they are numbers, such as 0,1,2")
    return [int(word) for word in words]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value
