"""The words of each command: those that it cannot do without, and those of one that writes."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import CONFIG, SHARDS, TINY

ARGUMENTS = {
    "anomaly": ["runs/none", "--normal", "a", "--abnormal", "b"],
    "attribute": ["runs/none", "shards", "--from", "0", "--to", "1", "out.png"],
    "classify": ["runs/none", "shards"],
    "compare": ["runs/none", "--reference", "shards", "--out", "out"],
    "completion": ["bash"],
    "compress": ["runs/none", "shards", "out.dpi"],
    "config": ["schema"],
    "decompress": ["none.dpi", "runs/none", "out"],
    "doctor": [str(CONFIG), *TINY],
    "encode": ["runs/none", "shards", "out"],
    "eval": ["runs/none", "--reference", "shards"],
    "export": ["runs/none", "out"],
    "import": ["folder", "runs/none"],
    "index": ["tars"],
    "interpolate": ["runs/none", "out.png"],
    "latent-map": ["runs/none", "shards", "out.png"],
    "nll": ["runs/none", "shards"],
    "pack": ["images", "shards"],
    "report": ["runs/none"],
    "runs": ["prune", "."],
    "sample": ["runs/none", "out"],
    "status": ["."],
    "train": [str(CONFIG), *TINY],
    "verify-resume": [str(CONFIG), *TINY],
}

TEST = SHARDS / "test"
SMALL = ("train.steps=2", "data.resolution=8", "sample.every=0", "eval.every=0", "data.workers=0")
FD = ("--metrics", "fd_efficientnet_lite0")

# The command without its output, which comes last, and the name of that output.
WRITERS = {
    "sample": (("sample", "{ddpm}", "{out}", "--n", 6), "samples"),
    "export": (("export", "{ddpm}", "{out}"), "weights"),
    "eval": (("eval", "{ddpm}", "--reference", TEST, "--n", 20, *FD, "--out", "{out}"), "score.json"),
    "nll": (("nll", "{ddpm}", TEST, "--n", 4, "--steps", 2, "--out", "{out}"), "nll.json"),
    "anomaly": (
        ("anomaly", "{vae}", "--normal", "{small}", "--abnormal", "{small}", "--n", 4, "--out", "{out}"),
        "anomaly.json",
    ),
    "classify": (("classify", "{ddpm}", TEST, "--n", 4, "--steps", 2, "--out", "{out}"), "classify.json"),
    "compare": (("compare", "{vae}", "--reference", TEST, "--n", 10, *FD, "--out", "{out}"), "compare"),
    "compress": (("compress", "{vae}", "{small}", "{out}", "--no-comparison"), "images.dpi"),
    "decompress": (("decompress", "{compressed}", "{vae}", "{out}"), "decompressed"),
    "interpolate": (("interpolate", "{ddpm}", "{out}", "--n", 2), "between.png"),
    "encode": (("encode", "{codec}", TEST, "{out}"), "latents"),
    "latent-map": (("latent-map", "{vae}", TEST, "{out}", "--n", 20), "map.png"),
    "attribute": (("attribute", "{vae}", TEST, "--from", 7, "--to", 9, "{out}", "--n", 20), "attribute.png"),
    "report": (("report", "{ddpm}", "--out", "{out}"), "report.html"),
    "pack": (("pack", "{images}", "{out}", "--workers", 0), "shards"),
    "index": (("index", "{out}", "--workers", 0), "tars"),
    "train": (("train", CONFIG, "run.dir={out}", *TINY, *SMALL), "run"),
}


def is_whole(path: Path) -> bool:
    """Whether a file is complete: an output that the command had finished, or one of its logs and locks."""
    if path.suffix in (".png", ".json", ".safetensors", ".html", ".md", ".dpi"):
        return not path.name.startswith(".") and path.stat().st_size > 0
    kept = (".lock", "lock", "config.yaml", "metrics.jsonl")  # an index keeps its finished scans
    return path.name in kept or path.parent.name == ".index.parts" or path.name.startswith("events.")
