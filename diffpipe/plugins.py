"""Parts that are not in this package: stages, networks, samplers, feature networks, …, each by its name.

They come from the entry points of installed packages (group `diffpipe.stages`, `diffpipe.networks`, …) and from modules
that the command line names (`--plugin MODULE`), which hold them in plain dictionaries: `diffpipe_stages`,
`diffpipe_networks`, … A config or a checkpoint only names a part: it makes Python import nothing. An entry point is
imported when its name is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from diffpipe.errors import UserError
from diffpipe.files import user_path

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Group = Literal["stages", "networks", "samplers", "packing_sources", "trackers", "feature_networks"]
GROUPS: tuple[Group, ...] = get_args(Group)

BUILT_IN: dict[Group, frozenset[str]] = {
    "stages": frozenset({"adversarial", "autoencoder", "autoregressive", "ddpm", "flow", "gan", "vae", "vq"}),
    "networks": frozenset({"adm", "dit", "edm2", "glow", "tarflow", "unet"}),
    "samplers": frozenset({"ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "edm", "euler", "heun", "unipc"}),
    "packing_sources": frozenset({"hf"}),
    "trackers": frozenset({"mlflow", "tensorboard", "trackio", "wandb"}),
    "feature_networks": frozenset({"efficientnet_lite0", "inception"}),
}
"""The names of diffpipe's own parts, which no plug-in may take."""

_parts: dict[Group, dict[str, Any]] = {group: {} for group in GROUPS}
_modules: list[str] = []


def load(name: str | Path) -> None:
    """Import a plug-in, and take the parts that it holds. Raises UserError.

    name: of a module that Python can import, or the path of a `.py` file. A module that is refused can be loaded again
    once it is corrected.
    """
    name = str(name)
    place = str(user_path(name).resolve()) if name.endswith(".py") else name
    if place in _modules:
        return
    module = _import(name)
    try:
        _take_parts(name, module)
    except UserError:
        _forget(name)
        raise
    _modules.append(place)


def _take_parts(name: str, module: ModuleType) -> None:
    parts: dict[Group, dict[str, Any]] = {group: getattr(module, f"diffpipe_{group}", {}) for group in GROUPS}
    for group, named in parts.items():
        if not isinstance(named, dict) or not all(isinstance(part, str) for part in named):
            raise UserError(f"plug-in {name}: diffpipe_{group} is not a dictionary from names to {group}; make it one")
        for part, value in named.items():
            if not callable(value):
                raise UserError(
                    f"plug-in {name}: {part} in diffpipe_{group} is {value!r}, and not a class or a function; "
                    "configs/README.md shows what each kind of part is"
                )
    if not any(parts.values()):
        known = ", ".join(f"diffpipe_{group}" for group in GROUPS)
        raise UserError(f"plug-in {name}: the module holds no parts; give it a dictionary called one of {known}")
    for group, named in parts.items():
        for part in named:
            if part in BUILT_IN[group]:
                raise UserError(f"plug-in {name}: {part} in {group} is a name of diffpipe's own; take another")
            if part in names(group):
                raise UserError(f"plug-in {name}: another plug-in has {part} in {group} already; rename one of them")
    for group, named in parts.items():
        _parts[group] |= named


def find(group: Group, name: str) -> Any | None:
    """The part of this name, or None where no plug-in has it. Raises UserError where its package cannot be imported."""
    if name in _parts[group]:
        return _parts[group][name]
    entries = [entry for entry in _entries(group) if entry.name == name]
    if not entries:
        return None
    if len(entries) > 1:
        values = " and ".join(entry.value for entry in entries)
        raise UserError(f"plug-in {name}: two packages have it in {group}, {values}; uninstall one of them")
    (entry,) = entries
    try:
        return entry.load()
    except Exception as error:
        raise UserError(
            f"plug-in {name}: cannot import {entry.value} ({error}); repair or remove its package"
        ) from error


def names(group: Group) -> list[str]:
    """The names of all parts of a group, in alphabetical order."""
    return sorted({*_parts[group], *(entry.name for entry in _entries(group))})


def options() -> list[str]:
    """The words of the command line that load the same modules in another process."""
    return [word for name in _modules for word in ("--plugin", name)]


@functools.cache
def _entries(group: Group) -> list[EntryPoint]:
    """The entry points of a group, without names of diffpipe's own, which stay what they are."""
    from importlib.metadata import entry_points  # noqa: PLC0415 (slow, and --help needs none)

    return [entry for entry in entry_points(group=f"diffpipe.{group}") if entry.name not in BUILT_IN[group]]


def _import(name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = user_path(name).resolve(strict=True)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        if path.stem in sys.modules:
            raise UserError(f"plug-in {name}: a module called {path.stem} is loaded already; rename the file")
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        _forget(name)
        reason = " ".join(str(error).split())
        there = name.endswith(".py") and Path(name).exists()
        remedy = (
            "correct the file" if there else "give the path of a .py file, or the name of a module that Python finds"
        )
        raise UserError(f"plug-in {name}: cannot be imported ({type(error).__name__}: {reason}); {remedy}") from error


def _forget(name: str) -> None:
    """Let a file that was refused be imported again."""
    if name.endswith(".py"):
        sys.modules.pop(Path(name).stem, None)
