"""Whether the weights of `run.init` fit the networks of a run: which are loaded, and which start fresh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.resume_compat import Change, changed_stage
from diffpipe.plural import plural
from diffpipe.train.lora import adapted_networks

_NAMED = 3
_ARCHITECTURE = ("stage.network.", "stage.generator.", "stage.discriminator.")


class Fit(NamedTuple):
    """The names, `network.tensor`, of the tensors that are loaded, that start fresh, and that we lack.

    changes: keys of the stage that have other values in the source.
    """

    loaded: list[str]
    fresh: list[str]
    unused: list[str]
    changes: Sequence[Change]

    def sentences(self) -> list[str]:
        """The tensors that are loaded and those that are not, in words."""
        networks = dict.fromkeys(name.partition(".")[0] for name in self.loaded)
        sentences = [f"{plural(len(self.loaded), 'tensor')} of {', '.join(networks)} loaded"]
        if self.fresh:
            sentences.append(f"starts fresh: {_listed(self.fresh)}")
        if self.unused:
            sentences.append(f"not used: {_listed(self.unused)}")
        if self.changes:
            sentences.append(f"trained otherwise than here: {_listed(map(str, self.changes))}")
        return sentences


def fit(there: Mapping[str, Tensor], nets: Mapping[str, nn.Module], source: Experiment, experiment: Experiment) -> Fit:
    """Compare the source's tensors with those of our networks. Raises UserError where they may not differ.

    there: by `network.tensor`. nets: ours. Values are not looked at. source: the config that the weights were trained
    with.
    """
    init = experiment.init
    here = {f"{name}.{key}": tensor for name, net in nets.items() for key, tensor in net.state_dict().items()}
    chosen = _chosen(init.networks, list(nets))
    _require_known(init.fresh, here)
    wanted = [name for name in here if name.partition(".")[0] in chosen and not _is_in(name, init.fresh)]
    missing = [name for name in wanted if name not in there]
    other_shape = [name for name in wanted if name in there and there[name].shape != here[name].shape]
    unfit = {*missing, *other_shape}
    loaded = [name for name in wanted if name not in unfit]
    unused = [name for name in there if name not in here]
    extra = [name for name in unused if name.partition(".")[0] in chosen and not _is_in(name, init.fresh)]
    changes = changed_stage(source, experiment)
    architecture = [change for change in changes if change.key.startswith(_ARCHITECTURE)]
    if not loaded or (init.strict and (unfit or extra or architecture)):
        shapes = [f"{name} ({[*there[name].shape]} there, {[*here[name].shape]} here)" for name in other_shape]
        parts = {"missing": missing, "not known here": extra, "of other shape": shapes}
        listed = [f"{what}: {_listed(names)}" for what, names in parts.items() if names]
        if architecture:
            listed.append(f"config: {_listed(map(str, architecture))}")
        raise UserError(f"the weights do not fit the networks; {'; '.join(listed)}; {_remedy(loaded, unfit)}")
    result = Fit(loaded, [name for name in here if name not in loaded], unused, changes)
    if experiment.lora is not None:
        _require_frozen_loaded(result, adapted_networks(experiment.lora, nets), init.fresh)
    return result


def _require_frozen_loaded(result: Fit, networks: Sequence[str], fresh: Sequence[str]) -> None:
    """Raise UserError where weights that lora freezes would stay as they were drawn."""
    drawn = [name for name in result.fresh if name.partition(".")[0] in networks and not _is_in(name, fresh)]
    if drawn:
        raise UserError(
            f"lora freezes all weights but those of init.fresh, and these start fresh: {_listed(drawn)}; name their "
            f"modules in init.fresh, or leave lora out"
        )


def _remedy(loaded: Sequence[str], unfit: Iterable[str]) -> str:
    if not loaded:
        return "give the weights of such networks, or change the stage section"
    modules = sorted({name.rpartition(".")[0] for name in unfit})
    fresh = f"init.fresh=[{','.join(modules)}] to start these fresh, or " if 0 < len(modules) <= _NAMED else ""
    return f"change the stage section, or set {fresh}init.strict=false to load what fits"


def _chosen(networks: Sequence[str] | None, ours: Sequence[str]) -> set[str]:
    if unknown := sorted({*(networks or ())} - {*ours}):
        raise UserError(f"init.networks names {', '.join(unknown)}, and this stage's networks are {', '.join(ours)}")
    return {*(ours if networks is None else networks)}


def _require_known(fresh: Sequence[str], here: Mapping[str, Tensor]) -> None:
    for module in fresh:
        if not any(_is_in(name, [module]) for name in here):
            modules = dict.fromkeys(".".join(name.split(".")[:2]) for name in here)
            raise UserError(f"init.fresh names {module}, and the networks have {_listed(modules, 10)}")


def _is_in(name: str, modules: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _listed(names: Iterable[str], most: int = _NAMED) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
