"""How well each family's score finds anomalies: the figures of eval/anomaly/README.md, by the real commands.

    OMP_NUM_THREADS=1 python eval/anomaly/measure.py classes runs/anomaly
    OMP_NUM_THREADS=1 python eval/anomaly/measure.py digits runs/anomaly

`classes`: trained on nine classes of Fashion-MNIST, the tenth is the anomaly, for each class in turn. `digits`: trained
on all ten, scikit-learn's digits are the anomaly. Jobs run one after the other, all classes of a stage before the next
stage. What stands already in the working folder is not done again, so a run that was stopped goes on; for other
settings take another folder. The table goes to stdout, all figures to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffpipe.__main__ import main as diffpipe
from diffpipe.data import load

HOME = Path(__file__).parents[2]
FASHION = HOME / "configs" / "fashion_mnist"
SMALL = ["data.labels=false", "data.batch_size=32", "sample.every=0"]


class Recipe(NamedTuple):
    """How a stage is trained, as overrides of its config, and how many images of each set are scored.

    vlb_steps: the network evaluations an image for a diffusion's bound.
    """

    config: str
    steps: int
    overrides: Sequence[str]
    n: int = 1000
    vlb_steps: int | None = None


RECIPES = {
    "autoencoder": Recipe("autoencoder", 300, SMALL),
    "denoising_autoencoder": Recipe("denoising_autoencoder", 300, SMALL),
    "vae": Recipe("vae", 300, [*SMALL, "stage.conditional=false", "stage.network.channels=8"]),
    "flow": Recipe(
        "flow",
        600,
        [*SMALL, "stage.conditional=false", "stage.network.steps=4", "stage.network.hidden=32", "ema.decay=0.99"],
    ),
    "ddpm": Recipe(
        "ddpm",
        400,
        [
            *SMALL,
            "data.batch_size=16",
            "stage.conditional=false",
            "stage.network.channels=16",
            "stage.network.channel_mult=[1,1,2]",
            "stage.network.attention=[]",
            "ema.decay=0.99",
        ],
        n=200,
        vlb_steps=16,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["classes", "digits"])
    parser.add_argument("work", type=Path, metavar="FOLDER", help="for the sets, the runs and their scores")
    parser.add_argument("--stages", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--classes", nargs="+", type=int, default=list(range(10)), help="which are left out in turn")
    parser.add_argument("--steps", type=int, help="train so many steps, whatever the stage")
    parser.add_argument("--n", type=int, help="score at most so many images of each set, whatever the stage")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON (default: FOLDER/classes.json or digits.json)"
    )
    args = parser.parse_args(argv)
    recipes = {name: _changed(RECIPES[name], args.steps, args.n) for name in args.stages}
    if args.what == "classes":
        names: list[str] = load(str(FASHION / "shards" / "train")).classes or []
        for stage, recipe in recipes.items():
            for label in args.classes:
                nine_against_one(args.work / f"without-{label}", stage, recipe, label)
        found = {
            stage: {names[c]: _read(args.work / f"without-{c}" / f"{stage}.json") for c in args.classes}
            for stage in recipes
        }
    else:
        sets = digit_sets(args.work / "digits")
        for stage, recipe in recipes.items():
            against_digits(args.work / "digits", stage, recipe, sets)
        found = {
            stage: {name: _read(args.work / "digits" / f"{stage}-{name}.json") for name in sets} for stage in recipes
        }
    said = {"recipes": {name: recipe._asdict() for name, recipe in recipes.items()}, "found": found}
    (args.out or args.work / f"{args.what}.json").write_text(json.dumps(said, indent=1) + "\n")
    print(table(found, mean=args.what == "classes"))


def nine_against_one(folder: Path, stage: str, recipe: Recipe, label: int) -> None:
    """Train on the nine other classes; their test images are normal, those of `label` are not."""
    train, normal, abnormal = (folder / name for name in ("train", "normal", "abnormal"))
    pack(FASHION / "shards" / "train", train, "--leave-out", label)
    pack(FASHION / "shards" / "test", normal, "--leave-out", label)
    pack(FASHION / "shards" / "test", abnormal, "--only", label)
    out = folder / f"{stage}.json"
    if not out.exists():
        anomaly(fit(folder / stage, recipe, train), recipe, normal, abnormal, out)


def against_digits(folder: Path, stage: str, recipe: Recipe, sets: Mapping[str, Path]) -> None:
    """Train on all classes; their test images are normal, digits are not."""
    for name, abnormal in sets.items():
        out = folder / f"{stage}-{name}.json"
        if not out.exists():
            shards = FASHION / "shards"
            anomaly(fit(folder / stage, recipe, shards / "train"), recipe, shards / "test", abnormal, out)


def digit_sets(folder: Path) -> dict[str, Path]:
    """Shards of scikit-learn's 1,797 digits of 8x8 pixels at 28x28, by name.

    "stretched": resized to 28x28 by the packer. "bordered": at 20x20 in the middle of black, as MNIST's are.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - comes with the tests' requirements alone
    except ImportError as error:
        raise SystemExit(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    digits: np.ndarray = load_digits().images  # pyright: ignore[reportAttributeAccessIssue]
    sets = {name: folder / name for name in ("stretched", "bordered")}
    for name, shards in sets.items():
        if shards.exists():
            continue
        images = folder / f"{name}-images"
        images.mkdir(parents=True, exist_ok=True)
        for i, digit in enumerate(digits):  # 0 to 16
            image = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
            if name == "bordered":
                canvas = Image.new("L", (28, 28))
                canvas.paste(image.resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
                image = canvas
            image.save(images / f"{i:04d}.png")
        pack(images, shards, "--resolution", 28)
    return sets


def pack(source: Path, out: Path, *options: object) -> None:
    if not out.exists():
        run("pack", source, out, *options)


def fit(run_dir: Path, recipe: Recipe, shards: Path) -> Path:
    """The directory of a run that was trained to the end; `train` itself resumes one that was stopped."""
    words = [f"run.dir={run_dir}", f"data.train={shards}", "data.test=null", *recipe.overrides]
    words += [f"train.steps={recipe.steps}", f"checkpoint.every={recipe.steps}"]
    run("train", FASHION / f"{recipe.config}.yaml", *words)
    return run_dir


def anomaly(run_dir: Path, recipe: Recipe, normal: Path, abnormal: Path, out: Path) -> None:
    steps = [] if recipe.vlb_steps is None else ["--steps", recipe.vlb_steps]
    run("anomaly", run_dir, "--normal", normal, "--abnormal", abnormal, "--n", recipe.n, *steps, "--out", out)


def run(*words: object) -> None:
    """A command of diffpipe, in this process, which saves its start of some seconds. It says itself what is wrong."""
    print("diffpipe", *words, file=sys.stderr, flush=True)
    if diffpipe([str(word) for word in words]):
        raise SystemExit(2)


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]], *, mean: bool) -> str:
    """AUROC in Markdown: a row an anomaly and, if asked for, one for their mean; a column a stage's score.

    found: stage → anomaly → what `diffpipe anomaly` wrote. ± is half the 95% bootstrap interval.
    """
    scores = [(stage, score) for stage, each in found.items() for score in next(iter(each.values()))["detection"]]
    rows = [
        ["anomaly", *(f"{stage.replace('_', ' ')}: {score}" for stage, score in scores)],
        ["---", *("---:" for _ in scores)],
    ]
    columns = []
    anomalies = list(next(iter(found.values())))
    for stage, score in scores:
        aurocs = [found[stage][name]["detection"][score]["auroc"] for name in anomalies]
        average = sum(each["value"] for each in aurocs) / len(aurocs)
        columns.append([f"{a['value']:.2f} ± {(a['high'] - a['low']) / 2:.2f}" for a in aurocs] + [f"{average:.2f}"])
    names = [*anomalies, "mean"] if mean else anomalies
    rows += [[name, *(column[i] for column in columns)] for i, name in enumerate(names)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _changed(recipe: Recipe, steps: int | None, n: int | None) -> Recipe:
    return recipe._replace(steps=steps or recipe.steps, n=n or recipe.n)


def _read(path: Path) -> dict[str, Any]:
    """What `diffpipe anomaly` wrote, less where the sets lay: their fingerprints say what was in them."""
    said = json.loads(path.read_text())
    for name in ("normal", "abnormal"):
        del said["protocol"][name]["shards"]
    return said


if __name__ == "__main__":
    main()
