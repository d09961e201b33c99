"""`diffpipe pack SRC OUT`."""

from __future__ import annotations

import argparse

from diffpipe import output
from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.cli.interrupts import stop_cleanly
from diffpipe.errors import UserError
from diffpipe.process import is_main_process

_SRC = """a folder or zip of images or of class folders; an images idx file, or a folder of an MNIST's; shards;
cifar-10-python.tar.gz; hf:NAME, hf:NAME:CONFIG or a saved Hugging Face dataset; NAME:PATH for a plug-in's source"""
_LABELS_FILE = """labels by image path relative to SRC, instead of class folders: CSV or TSV (columns path and label, or
these two without a header), JSON lines ({path, label}), or text (a path, a space, a label)"""
_SPLIT_BY = """write OUT/train and OUT/test; a hash of its name puts each group into one. 'group': the first folder of a
path; 'column:NAME': a column of the labels file or dataset; else a regular expression whose first group finds it"""
_TO = "shards (the default), or one OUT.zip in the form of StyleGAN's and EDM's dataset_tool"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe pack photos shards --resolution 64 --split-by group")
    parser.add_argument("src", metavar="SRC", help=_SRC)
    parser.add_argument("out", type=types.local_path, metavar="OUT", help="the folder to create, whole or not at all")
    add = parser.add_argument_group("what is in SRC").add_argument
    add("--labels-file", type=types.local_path, metavar="FILE", help=_LABELS_FILE)
    add("--labels", type=types.local_path, metavar="FILE", help="the labels idx file of an images idx file")
    add("--split", metavar="NAME", help="train (the default) or test, or a split of a Hugging Face dataset")
    add("--classes", type=types.words, default=[], metavar="A,B,C", help="class names, for idx and labels files")
    add(
        "--columns",
        type=types.words,
        default=[],
        metavar="IMAGE,LABEL",
        help="of a Hugging Face dataset that has several of them",
    )
    stray = "leave out images beside class folders, and class folders without images"
    add("--skip-stray", action="store_true", help=stray)
    add = parser.add_argument_group("how images are written").add_argument
    add("--to", choices=["shards", "edm-zip"], default="shards", help=_TO)
    resized = "resize and crop at the centre to N x N pixels, or to a height of H and a width of W"
    add("--resolution", type=types.resolution, metavar="N|HxW", help=resized)
    kept = "keep (the default): PNG, JPEG and WebP of the right size unchanged, and PNG for the rest"
    add("--format", choices=["keep", "png", "jpeg", "webp"], default="keep", help=kept)
    add("--quality", type=types.quality, metavar="Q", help="of JPEG and WebP, 1 to 100 (default 95)")
    add("--background", type=types.colour, metavar="COLOUR", help="under transparent pixels: white, #102030 …")
    add = parser.add_argument_group("which images").add_mutually_exclusive_group().add_argument
    add("--only", type=types.labels, default=[], metavar="0,1,2", help="only images with these labels")
    add("--leave-out", type=types.labels, default=[], metavar="3", help="all images but those with these labels")
    add = parser.add_argument
    add("--per-class", type=types.positive, metavar="N", help="N images of each class, chosen by the seed")
    add(
        "--max-bad",
        type=types.natural,
        default=0,
        metavar="N",
        help="skip up to N bad images, with warnings (default 0)",
    )
    add("--split-by", metavar="GROUP", help=_SPLIT_BY)
    add("--test-fraction", type=types.fraction, metavar="F", help="fraction of the groups to test on (default 0.1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the shuffle and the choice (default 0)")
    add("--shard-samples", type=types.positive, default=1000, metavar="N", help="samples per shard (default 1000)")
    add("--prefix", default="shard", metavar="WORD", help="shards are named WORD-000000.tar (default shard)")
    add(
        "--workers",
        type=types.natural,
        metavar="N",
        help="processes; they do not change the output (default: one per processor)",
    )


def run(args: argparse.Namespace) -> None:
    from diffpipe.data.packing.choose import Split
    from diffpipe.data.packing.encode import Encoding
    from diffpipe.data.packing.open_source import open_source
    from diffpipe.data.packing.pack_as import pack_as

    if not is_main_process():
        return  # one process of a launched job packs, with workers of its own
    if args.quality is not None and args.format not in ("jpeg", "webp"):
        raise UserError("--quality is for --format jpeg and webp; give one of them")
    if args.test_fraction is not None and args.split_by is None:
        raise UserError("--test-fraction is for --split-by, which names the groups to keep together; give it too")
    encoding = Encoding(args.resolution, args.format, args.quality or 95, args.background)
    split = Split(args.split_by, args.test_fraction or 0.1) if args.split_by else None
    of_source = options.values(args, "labels_file", "labels", "split", "classes", "columns", "skip_stray")
    how = options.values(args, "shard_samples", "only", "leave_out", "per_class", "seed", "prefix")
    how |= {"workers": options.worker_processes(args), "max_bad_samples": args.max_bad}
    with stop_cleanly(f"stopped by a signal; {args.out} was not made, and nothing is left of it"):
        source = open_source(args.src, **of_source)
        packed, notes, bad = pack_as(args.to, source, args.out, encoding=encoding, split=split, **how)
    shards = [] if isinstance(packed, str) else packed
    lines = [*map(str, shards or [packed]), *(f"{args.src}: {note}" for note in notes)]
    about = {"shards": [summary._asdict() for summary in shards], "remarks": notes, "skipped": bad}
    options.print_result("\n".join(lines), args.out, **about)
    for reason in bad:
        output.current.remark(f"warning: skipped: {reason}")
