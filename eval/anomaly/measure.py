"""The AUROC of each family's anomaly scores: the figures of eval/anomaly/README.md.

    OMP_NUM_THREADS=1 python eval/anomaly/measure.py classes runs/anomaly
    OMP_NUM_THREADS=1 python eval/anomaly/measure.py digits runs/anomaly

`classes`: train on nine classes of Fashion-MNIST; the tenth is the anomaly, for each class in turn. `digits`: train on
all ten; scikit-learn's digits are the anomaly. It runs `diffpipe pack`, `train` and `anomaly`, one job after the other,
all classes of a stage before the next stage. Results in the working folder are kept: started again, it continues. For
other settings give another folder. The table goes to stdout, all figures to a JSON file.
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
    """The training of a stage, as overrides of its config, and the number of images of each set to score.

    vlb_steps: the network evaluations per image for a diffusion's bound.
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
    parser.add_argument("experiment", choices=["classes", "digits"])
    parser.add_argument(
        "work", type=Path, metavar="FOLDER", help="folder for the image sets, the runs and their scores"
    )
    parser.add_argument("--stages", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--classes", nargs="+", type=int, default=list(range(10)), help="the classes to leave out in turn"
    )
    parser.add_argument("--steps", type=int, help="training steps of every stage (default: the stage's own)")
    parser.add_argument("--n", type=int, help="images of each set to score at most (default: the stage's own)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON (default: FOLDER/classes.json or digits.json)"
    )
    args = parser.parse_args(argv)
    recipes = {name: _override(RECIPES[name], args.steps, args.n) for name in args.stages}
    if args.experiment == "classes":
        names: list[str] = load(str(FASHION / "shards" / "train")).classes or []
        for stage, recipe in recipes.items():
            for label in args.classes:
                nine_against_one(args.work / f"without-{label}", stage, recipe, label)
        results = {
            stage: {names[c]: _read(args.work / f"without-{c}" / f"{stage}.json") for c in args.classes}
            for stage in recipes
        }
    else:
        sets = digit_sets(args.work / "digits")
        for stage, recipe in recipes.items():
            against_digits(args.work / "digits", stage, recipe, sets)
        results = {
            stage: {name: _read(args.work / "digits" / f"{stage}-{name}.json") for name in sets} for stage in recipes
        }
    tree = {"recipes": {name: recipe._asdict() for name, recipe in recipes.items()}, "found": results}
    (args.out or args.work / f"{args.experiment}.json").write_text(json.dumps(tree, indent=1) + "\n")
    print(table(results, mean=args.experiment == "classes"))


def nine_against_one(folder: Path, stage: str, recipe: Recipe, label: int) -> None:
    """Train on the other nine classes. Their test images are normal, those of class `label` are abnormal."""
    train, normal, abnormal = (folder / name for name in ("train", "normal", "abnormal"))
    pack(FASHION / "shards" / "train", train, "--leave-out", label)
    pack(FASHION / "shards" / "test", normal, "--leave-out", label)
    pack(FASHION / "shards" / "test", abnormal, "--only", label)
    out = folder / f"{stage}.json"
    if not out.exists():
        anomaly(fit(folder / stage, recipe, train), recipe, normal, abnormal, out)


def against_digits(folder: Path, stage: str, recipe: Recipe, sets: Mapping[str, Path]) -> None:
    """Train on all classes. Their test images are normal, digits are abnormal."""
    for name, abnormal in sets.items():
        out = folder / f"{stage}-{name}.json"
        if not out.exists():
            shards = FASHION / "shards"
            anomaly(fit(folder / stage, recipe, shards / "train"), recipe, shards / "test", abnormal, out)


def digit_sets(folder: Path) -> dict[str, Path]:
    """Two sets of shards of scikit-learn's 1,797 digits of 8x8 pixels, at 28x28, by name.

    "stretched": resized to 28x28 by the packer. "bordered": at 20x20 in the middle of a black image, like MNIST's.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - only the tests' requirements hold it
    except ImportError as error:
        raise SystemExit("the digits are scikit-learn's, which is not installed: pip install scikit-learn") from error
    digits: np.ndarray = load_digits().images  # pyright: ignore[reportAttributeAccessIssue]
    sets = {name: folder / name for name in ("stretched", "bordered")}
    for name, shards in sets.items():
        if shards.exists():
            continue
        images = folder / f"{name}-images"
        images.mkdir(parents=True, exist_ok=True)
        for i, digit in enumerate(digits):  # values 0 to 16
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
    """Train the run, or resume it, and return its directory."""
    words = [f"run.dir={run_dir}", f"data.train={shards}", "data.test=null", *recipe.overrides]
    words += [f"train.steps={recipe.steps}", f"checkpoint.every={recipe.steps}"]
    run("train", FASHION / f"{recipe.config}.yaml", *words)
    return run_dir


def anomaly(run_dir: Path, recipe: Recipe, normal: Path, abnormal: Path, out: Path) -> None:
    steps = [] if recipe.vlb_steps is None else ["--steps", recipe.vlb_steps]
    run("anomaly", run_dir, "--normal", normal, "--abnormal", abnormal, "--n", recipe.n, *steps, "--out", out)


def run(*words: object) -> None:
    """Run a command of diffpipe in this process, which saves the seconds of a start. It prints its own errors."""
    print("diffpipe", *words, file=sys.stderr, flush=True)
    if diffpipe([str(word) for word in words]):
        raise SystemExit(2)


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], *, mean: bool) -> str:
    """AUROC as a Markdown table: a row per anomaly, and one for the mean where asked; a column per stage and score.

    results: stage → anomaly → the JSON of `diffpipe anomaly`. ± is half the 95% bootstrap interval.
    """
    scores = [
        (stage, score) for stage, anomalies in results.items() for score in next(iter(anomalies.values()))["detection"]
    ]
    rows = [
        ["anomaly", *(f"{stage.replace('_', ' ')}: {score}" for stage, score in scores)],
        ["---", *("---:" for _ in scores)],
    ]
    columns = []
    anomalies = list(next(iter(results.values())))
    for stage, score in scores:
        aurocs = [results[stage][name]["detection"][score]["auroc"] for name in anomalies]
        average = sum(auroc["value"] for auroc in aurocs) / len(aurocs)
        columns.append(
            [f"{auroc['value']:.2f} ± {(auroc['high'] - auroc['low']) / 2:.2f}" for auroc in aurocs]
            + [f"{average:.2f}"]
        )
    names = [*anomalies, "mean"] if mean else anomalies
    rows += [[name, *(column[i] for column in columns)] for i, name in enumerate(names)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _override(recipe: Recipe, steps: int | None, n: int | None) -> Recipe:
    return recipe._replace(steps=steps or recipe.steps, n=n or recipe.n)


def _read(path: Path) -> dict[str, Any]:
    """The JSON of `diffpipe anomaly` without the sets' paths. Their fingerprints identify them."""
    result = json.loads(path.read_text())
    for name in ("normal", "abnormal"):
        del result["protocol"][name]["shards"]
    return result


if __name__ == "__main__":
    main()
