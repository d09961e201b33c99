"""A command that the run's family cannot serve ends in one line, in terms of the options given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import HOME, SHARDS, TINY, refused, succeeds, train

FASHION = HOME / "configs" / "fashion_mnist"
SMALL = ["train.steps=1", "data.resolution=8", f"data.train={SHARDS}/test"]
CONFIGS = {"vae": "vae", "gan": "gan", "few": "adversarial", "ae": "autoencoder", "ddpm": "ddpm", "dropped": "ddpm"}
CONFIGS |= {"ar": "autoregressive"}

LABELLED = {"labelled": "ddpm", "ar_labelled": "autoregressive"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each family, none of which knows of classes, and two that do, one of them without hidden labels."""
    home = tmp_path_factory.mktemp("made")
    for name, config in CONFIGS.items():
        words = [] if name in ("ae", "dropped") else ["stage.conditional=false"]
        train(home / name, *SMALL, *words, config=FASHION / f"{config}.yaml")
    for name, config in LABELLED.items():
        train(home / name, *SMALL, "stage.label_dropout=0", config=FASHION / f"{config}.yaml")
    return {name: home / name for name in (*CONFIGS, *LABELLED)} | {"test": SHARDS / "test"}


BETWEEN = ["--normal", "{test}", "--abnormal", "{test}"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "no likelihood of a GAN": (["nll", "{gan}", "{test}"], ["stage.kind gan has no likelihood and no error"]),
    "no likelihood of a few-step denoiser": (["nll", "{few}", "{test}"], ["stage.kind adversarial has no likelihood"]),
    "no likelihood of an autoencoder": (
        ["nll", "{ae}", "{test}", "--n", "4"],
        ["stage.kind autoencoder has an error and no likelihood"],
    ),
    "no anomaly score of a few-step denoiser": (["anomaly", "{few}", *BETWEEN], ["adversarial has no likelihood"]),
    "no classes of a GAN": (["classify", "{gan}", "{test}"], ["stage.kind gan has no likelihood"]),
    "no classes of an autoencoder": (
        ["classify", "{ae}", "{test}"],
        ["stage.kind autoencoder has none", "stage.conditional=true"],
    ),
    "no classes": (["classify", "{vae}", "{test}"], ["{vae}: ", "stage.kind vae has none", "data.labels=true"]),
    "too few to classify": (["classify", "{vae}", "{test}", "--n", "3"], ["n is 3", "4 or more"]),
    "steps of a VAE's bound": (
        ["nll", "{vae}", "{test}", "--steps", "9"],
        ["steps is for a diffusion's bound, and {vae} is of stage.kind vae"],
    ),
    "steps of an autoencoder's error": (
        ["anomaly", "{ae}", *BETWEEN, "--steps", "9"],
        ["steps is for a diffusion's bound, and {ae} is of stage.kind autoencoder"],
    ),
    "importance samples of a diffusion": (
        ["nll", "{ddpm}", "{test}", "--importance-samples", "4"],
        ["importance_samples is for a VAE's bound, and {ddpm} is of stage.kind ddpm"],
    ),
    "no importance sample": (
        ["nll", "{vae}", "{test}", "--importance-samples", "0"],
        ["error: stage.sampler.importance_samples is 0; give an integer ≥ 1"],
    ),
    "the probability flow of a VAE": (
        ["nll", "{vae}", "{test}", "--ode"],
        ["ode is for a diffusion, and {vae} is of stage.kind vae"],
    ),
    "probes of a bound": (
        ["nll", "{ddpm}", "{test}", "--probes", "4"],
        ["probes is for the likelihood of the probability flow; give ode too"],
    ),
    "one probe": (["nll", "{ddpm}", "{test}", "--ode", "--probes", "1"], ["probes is 1; give 2 or more"]),
    "no steps of the probability flow": (["nll", "{ddpm}", "{test}", "--ode", "--steps", "0"], ["steps are 0; give 1"]),
    "steps of a GAN": (
        ["sample", "{gan}", "{out}", "--steps", "9"],
        ["steps is for a diffusion's sampling, and {gan} is of stage.kind gan"],
    ),
    "a sampler of a VAE": (
        ["eval", "{vae}", "--reference", "{test}", "--sampler", "ddim"],
        ["sampler is for a diffusion's sampling, and {vae} is of stage.kind vae"],
    ),
    "eta of a few-step denoiser": (["sample", "{few}", "{out}", "--eta", "1"], ["eta is for a diffusion's sampling"]),
    "guidance of a GAN": (
        ["sample", "{gan}", "{out}", "--guidance", "2"],
        ["guidance is for the sampling of a diffusion or an autoregressive model, and {gan} is of stage.kind gan"],
    ),
    "top_k of a VAE": (
        ["sample", "{vae}", "{out}", "--top-k", "5"],
        ["top_k is for the sampling of an autoregressive model, and {vae} is of stage.kind vae"],
    ),
    "top_k above the levels": (
        ["sample", "{ar}", "{out}", "--top-k", "257"],
        ["top_k 257 is more than the 256 values"],
    ),
    "top_p of zero": (
        ["sample", "{ar}", "{out}", "--top-p", "0"],
        ["stage.sampler.top_p is 0.0; give a number > 0, ≤ 1"],
    ),
    "top_p above one": (
        ["sample", "{ar}", "{out}", "--top-p", "1.5"],
        ["stage.sampler.top_p is 1.5; give a number > 0, ≤ 1"],
    ),
    "a negative temperature": (
        ["sample", "{ar}", "{out}", "--temperature", "-1"],
        ["stage.sampler.temperature is -1.0; give a number ≥ 0"],
    ),
    "guidance of an autoregressive model without labels": (
        ["sample", "{ar}", "{out}", "--guidance", "2"],
        ["guidance needs labels to guide by", "stage.conditional=true"],
    ),
    "guidance of an autoregressive model that has always had labels": (
        ["sample", "{ar_labelled}", "{out}", "--guidance", "2"],
        ["guidance needs a network that was trained without labels too", "stage.label_dropout above 0, such as 0.1"],
    ),
    "steps of an autoregressive model": (
        ["nll", "{ar}", "{test}", "--steps", "9"],
        ["steps is for a diffusion's bound, and {ar} is of stage.kind autoregressive"],
    ),
    "temperature of a diffusion": (
        ["sample", "{ddpm}", "{out}", "--temperature", "0.5"],
        ["temperature is for the sampling of a flow, VAE, GAN, adversarial denoiser or autoreg", "stage.kind ddpm"],
    ),
    "a codec of a diffusion in pixels": (
        ["sample", "{ddpm}", "{out}", "--codec", "{vae}"],
        ["codec is for a latent diffusion (stage.codec.kind vae) or", "and {ddpm} is of stage.kind ddpm"],
    ),
    "guidance without labels": (
        ["sample", "{ddpm}", "{out}", "--guidance", "2"],
        ["guidance needs labels to guide by", "stage.conditional=true"],
    ),
    "guidance of a network that has always had labels": (
        ["sample", "{labelled}", "{out}", "--guidance", "2"],
        ["guidance needs a network that was trained without labels too", "stage.label_dropout above 0, such as 0.1"],
    ),
    "an interval beyond all noise levels": (
        ["sample", "{dropped}", "{out}", "--guidance", "3", "--guidance-interval", "1e6,1e7"],
        ["guidance_interval [1000000.0, 10000000.0] holds none of the noise levels"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line(tmp_path: Path, made: dict[str, Path], case: str) -> None:
    words, parts = CASES[case]
    line = refused(*(word.format(out=tmp_path / "out", **made) for word in words))
    for part in parts:
        assert part.format(**made) in line
    assert "unknown key" not in line


def test_training_with_guidance_and_no_labels_is_refused(tmp_path: Path) -> None:
    words = ["stage.sampler.guidance=2", "stage.conditional=false"]
    line = refused("train", FASHION / "ddpm.yaml", f"run.dir={tmp_path}", *TINY, *words)
    assert "stage.sampler.guidance needs labels to guide by; set stage.conditional=true" in line


TRAINING: dict[str, tuple[list[str], str]] = {
    "sigma_min above sigma_max": (
        ["stage.prediction=edm", "stage.schedule={kind: edm, sigma_min: 90}"],
        "sigma_min is 90.0, not below sigma_max 80.0",
    ),
    "v with edm": (["stage.prediction=v", "stage.schedule={kind: edm}"], "prediction v does not go with schedule.kind"),
    "eps with edm2": (["stage.network={kind: edm2}"], "which prediction eps does not have; set prediction=edm"),
    "Muon's learning rate with AdamW": (["optimizer.muon_lr=0.1"], "muon_lr is for kind=muon, and the kind is adamw"),
    "Muon's convolutions with AdamW": (
        ["optimizer.muon_convolutions=true"],
        "muon_convolutions is for kind=muon, and the kind is adamw",
    ),
    "v with flow": (["stage.prediction=v", "stage.schedule={kind: flow}"], "it takes flow or x0"),
    "eps without signal at the end": (["stage.schedule.zero_terminal_snr=true"], "set prediction=v or x0"),
    "one-sided ends with eps": (
        ["stage.prediction=eps", "stage.one_sided_ends=true"],
        "one_sided_ends is about a predicted image, and prediction eps is none; set prediction=x0",
    ),
    "more steps than timesteps": (["stage.sampler.steps=5000"], "the sampler's steps are 5000"),
    "guidance without label dropout": (
        ["data.labels=true", "stage.conditional=true", "stage.label_dropout=0", "stage.sampler.guidance=2"],
        "needs a network that was trained without labels too",
    ),
    "a dropout of every label": (
        ["data.labels=true", "stage.conditional=true", "stage.label_dropout=1"],
        "stage.label_dropout is 1; give a number ≥ 0, < 1",
    ),
    "p2 that overflows": (
        ["stage.weighting={kind: p2, gamma: 1000, k: 0.1}"],
        "stage.weighting: gamma 1000.0 and k 0.1 weight pure noise by over 1e+30",
    ),
    "gamma of a weighting without it": (
        ["stage.weighting={kind: edm, gamma: 5}"],
        "stage.weighting: gamma belongs to min_snr and p2, and kind is edm; leave gamma out",
    ),
    "k of a weighting without it": (
        ["stage.weighting={kind: min_snr, k: 2}"],
        "stage.weighting: k belongs to p2, and kind is min_snr; leave k out",
    ),
    "a shift to no noise": (
        ["stage.prediction=flow", "stage.schedule={kind: flow, shift: 1e-17}"],
        "stage.schedule.shift is '1e-17'; give a number ≥ 0.01, ≤ 100",
    ),
    "a spacing by a large power": (
        ["stage.prediction=edm", "stage.schedule={kind: edm, rho: 0.005}"],
        "stage.schedule.rho is 0.005; give a number ≥ 1",
    ),
    "Muon's momentum with AdamW": (
        ["optimizer.muon_momentum=0.9"],
        "muon_momentum is for kind=muon, and the kind is adamw",
    ),
    "karras with a flow": (
        ["stage.prediction=flow", "stage.schedule={kind: flow}", "stage.sampler.spacing=karras"],
        "spacing=karras is not for stage.schedule.kind=flow; use trailing",
    ),
    "the edm sampler with a flow": (
        ["stage.prediction=flow", "stage.schedule={kind: flow}", "stage.sampler.kind=edm"],
        "stage.sampler.kind=edm starts at a finite sigma",
    ),
    "an interval that descends": (["stage.sampler.guidance_interval=[5,1]"], "[5.0, 1.0] must ascend"),
    "an unknown sampler": (["stage.sampler.kind=ddmi"], "stage.sampler.kind"),
    "a learned variance with edm": (
        ["stage.prediction=edm", "stage.schedule={kind: edm}", "stage.learned_variance=true"],
        "learned_variance needs a schedule with timesteps",
    ),
    "signal at the end": (
        ["stage.schedule={kind: linear, beta_end: 0.001}"],
        "of the image's variance in x_T, and sampling starts from pure noise",
    ),
}


@pytest.mark.parametrize("case", TRAINING)
def test_an_objective_or_a_sampler_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    words, part = TRAINING[case]
    line = refused("train", FASHION / "ddpm.yaml", f"run.dir={tmp_path / 'run'}", *TINY, *words)
    assert part in line


def test_importance_samples_tighten_the_bound_of_a_vae(tmp_path: Path, made: dict[str, Path]) -> None:
    found = []
    for k in (1, 8):
        out = tmp_path / f"{k}.json"
        succeeds("nll", made["vae"], SHARDS / "test", "--n", 16, "--importance-samples", k, "--out", out)
        found.append(json.loads(out.read_text()))
    assert [each["protocol"]["model"]["sampler"]["importance_samples"] for each in found] == [1, 8]
    assert found[1]["scores"]["nll"] < found[0]["scores"]["nll"]
