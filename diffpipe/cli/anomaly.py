"""`diffpipe anomaly RUN --normal SHARDS --abnormal SHARDS`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpipe.cli.options import bound_overrides
from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import Likelihoods, is_conditional, score_images, scoring
from diffpipe.experiment.run import Run, open_run
from diffpipe.metrics.complexity import complexity
from diffpipe.metrics.detection import Detection, detect, typicality
from diffpipe.report.anomaly_grid import most_and_least_anomalous
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument("--normal", required=True, metavar="SHARDS", help="images like those it was trained on")
    parser.add_argument("--abnormal", required=True, metavar="SHARDS", help="images that it should tell from them")
    parser.add_argument("--n", type=int, default=1000, help="how many of each, at most (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise in a score (default %(default)s)")
    parser.add_argument("--steps", type=int, help="network evaluations an image for a diffusion's bound")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON, a picture beside it (default: in scores/)")


def run(args: argparse.Namespace) -> None:
    with Runtime.start(args.precision, args.device) as runtime:
        opened = open_run(args.run, bound_overrides(args), runtime, raw=args.raw)
        scoring(opened)
        if is_conditional(opened):
            raise UserError(
                f"{args.run}: a class-conditional stage explains an image given its class, and an anomaly has none; "
                f"give a run trained with stage.conditional=false"
            )
        sets = {
            "normal": runtime.comm.raise_on_all_ranks(lambda: _images("--normal", args.normal, opened, args.n)),
            "abnormal": runtime.comm.raise_on_all_ranks(lambda: _images("--abnormal", args.abnormal, opened, args.n)),
        }
        found = {name: score_images(opened, images, args.seed, runtime) for name, images in sets.items()}
        scores = {name: {found[name].kind: found[name].values["score"].numpy()} for name in sets}
        pixels = {name: images.images(range(images.n)) for name, images in sets.items()}
        if found["normal"].unit == "bits/dim":
            trained = runtime.comm.raise_on_all_ranks(
                lambda: _images("data.train", opened.experiment.data.trained_on, opened, args.n)
            )
            likelihood = score_images(opened, trained, args.seed, runtime).values["score"].numpy()
            for name, each in scores.items():
                (raw,) = each.values()
                each |= {"complexity": raw - complexity(pixels[name]), "typicality": typicality(raw, likelihood)}
        detections = {kind: detect(scores["normal"][kind], scores["abnormal"][kind]) for kind in scores["normal"]}
        out = args.out or opened.home / "scores" / f"anomaly-step-{opened.checkpoint.step:08d}.json"
        if runtime.main:
            said = {
                "run": opened.describe(),
                "seed": args.seed,
                **{k: {"n": s.n, **s.describe()} for k, s in sets.items()},
            }
            _write(out, detections, found["normal"], said)
            most_and_least_anomalous(scores, pixels).save(out.with_suffix(".png"))
        print_on_rank_zero(runtime, f"{table(detections, found['normal'])}\n{out}\n{out.with_suffix('.png')}")


def _images(option: str, shards: str | list[str], opened: Run, n: int) -> ShardImages:
    """The images, which must have the run's size as they are: a resize would itself tell two sets apart."""
    loaded = shard_set.load(shards)
    size = opened.shape.resolution
    height, width = ShardImages(loaded, opened.shape.channels, None).images(range(1)).shape[2:]
    if option != "data.train" and (height, width) != (size, size):
        raise UserError(
            f"{option} {shards} holds images of {width}x{height} and the run was trained at {size}x{size}; "
            f"pack both sets alike: diffpipe pack … --resolution {size}"
        )
    return ShardImages(loaded, opened.shape.channels, size, n=min(n, loaded.total))


def table(detections: Mapping[str, Detection], found: Likelihoods) -> str:
    """A line a score, each figure with its 95% interval."""
    lines = [f"{'score':>12}  {'AUROC':^24}  {'average precision':^24}  {'FPR at 95% TPR':^24}"]
    for kind, figures in detections.items():
        cells = "  ".join(f"{f.value:.4f} ({f.low:.4f} to {f.high:.4f})" for f in figures)
        lines.append(f"{kind:>12}  {cells}")
    if found.unit == "bits/dim" and detections[found.kind].auroc.value < 0.5:
        lines.append(
            "the raw likelihood takes the abnormal images for more normal than the normal ones, as likelihoods do with "
            "images simpler than those of the training: the other two scores are made to repair it, if not always"
        )
    return "\n".join(lines)


def _write(out: Path, detections: Mapping[str, Detection], found: Likelihoods, said: Mapping[str, Any]) -> None:
    figures = {
        kind: {name: interval._asdict() for name, interval in detection._asdict().items()}
        for kind, detection in detections.items()
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"detection": figures, "unit": found.unit, "protocol": said}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
