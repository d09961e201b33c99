"""Images per second of 2 processes of 1 thread and of 1 process of 2 threads, at the same global batch.

    python -m eval.speed.processes

It starts the trainings itself, as a user would, on real images with the config's loader. They take turns. Images per
second are those of metrics.jsonl without the first third of the log steps. The default of `data.workers` here is 0: two
cores are busy already. CPUs only: on GPUs the number of threads does not matter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from tqdm import tqdm

from eval.speed import launch
from eval.speed.benchmark import table


def train(args: argparse.Namespace, run_dir: Path, processes: int, threads: int) -> float:
    """The median images per second of one training."""
    words = ["train", args.config, f"run.dir={run_dir}", f"train.steps={args.steps}", "checkpoint.every=0"]
    words += [f"train.log_every={max(1, args.steps // 12)}", "train.device=cpu", "data.workers=0", *args.overrides]
    launch.run_module("diffpipe", *words, processes=processes, threads=threads)
    rates = [json.loads(line)["images_per_second"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir)
    return statistics.median(rates[len(rates) // 3 :])


def row(name: str, rates: list[float], reference: list[float]) -> dict[str, str]:
    """The rates of each round, and their ratios to the reference's rates of the same rounds."""
    ratios = [rate / other for rate, other in zip(rates, reference, strict=True)]
    return {
        "training": name,
        "images/s": f"{statistics.median(rates):.1f}",
        "rounds": ", ".join(f"{rate:.1f}" for rate in rates),
        "ratio": f"{statistics.median(rates) / statistics.median(reference):.3f}",
        "ratio of each round": ", ".join(f"{ratio:.3f}" for ratio in ratios),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/fashion_mnist/ddpm.yaml", help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="steps of each (default %(default)s)")
    parser.add_argument(
        "--dir", type=Path, help="folder for the runs, which are removed (default: that of temporary files)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override the config, for both kinds")
    args = parser.parse_args(argv)
    busy = launch.machine()
    kinds = {"1 process of 2 threads": (1, 2), "2 processes of 1 thread": (2, 1)}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    folder = Path(tempfile.mkdtemp(dir=args.dir, prefix="processes-"))
    try:
        for i in tqdm(range(args.rounds), desc="rounds"):
            for name, (processes, threads) in [*kinds.items()][:: 1 if i % 2 else -1]:
                rates[name].append(train(args, folder / "run", processes, threads))
    finally:
        shutil.rmtree(folder)
    one_process = next(iter(rates.values()))
    print(table([row(name, kind_rates, one_process) for name, kind_rates in rates.items()]))
    print(f"\n{busy}; {args.config} {' '.join(args.overrides)}")


if __name__ == "__main__":
    main()
