"""Safetensors files: one that somebody else made, compared before any tensor is read, and one that is written."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.files import open_regular, sync
from diffpipe.plural import plural

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_DTYPES = {"F64", "F32", "F16", "BF16"}
_NAMED = 3


def refuse_pickle(path: Path, convert: str) -> UserError:
    """The error about a pickle. convert: the command that turns it into a safetensors file."""
    return UserError(
        f"{path}: a pickle, which can run any code when it is read; where you trust it, convert it: {convert}"
    )


def convert_state_dict(path: Path) -> str:
    """The command that turns a pickled state dict into a safetensors file."""
    rename = ""
    if path.suffix == ".safetensors":
        path, rename = (
            path.with_suffix(".pt"),
            f"mv {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.pt')))} && ",
        )
    code = (
        f"import torch, safetensors.torch as s; w = torch.load({literal(path)}, weights_only=True); "
        f"s.save_file({{k: t.contiguous() for k, t in w.items()}}, {literal(path.with_suffix('.safetensors'))})"
    )
    return f"{rename}python -c {shlex.quote(code)}"


def literal(path: Path) -> str:
    """The path as text of a Python program, in double quotes: single ones are around the program in a shell."""
    return json.dumps(str(path), ensure_ascii=False)


class WeightsFile:
    """The names, shapes and metadata of a safetensors file. Raises UserError where it is another file.

    rename: their name of a tensor from the one in the file, where an earlier version had others.
    """

    def __init__(self, path: Path, rename: Callable[[str], str] = lambda name: name):
        self.path = path
        try:
            with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
                start = file.read(4)
            if path.suffix in PICKLES or start.startswith(_PICKLE_STARTS):
                raise refuse_pickle(path, convert_state_dict(path))
            self._file = safe_open(path, "pt")
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (no mapping)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; give a safetensors file that can be read") from error
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({str(error)[:200]})") from error
        self._names = {rename(name): name for name in slices}
        self.shapes = {rename(name): tuple(stored.get_shape()) for name, stored in slices.items()}
        strange = next((name for name, stored in slices.items() if stored.get_dtype() not in _DTYPES), None)
        if strange is not None:
            raise UserError(f"{path}: {strange[:80]} holds {slices[strange].get_dtype()}, and weights are floats")

    def require(self, expected: Mapping[str, Sequence[int]], what: str) -> None:
        """Raise UserError unless the file has these tensors, in these shapes, and no others. what: they belong to."""
        missing, extra = sorted(expected.keys() - self.shapes), sorted(self.shapes.keys() - expected)
        if missing or extra:
            names = missing or extra
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            listed = ", ".join(name[:80] for name in names[:_NAMED])
            raise UserError(
                f"{self.path}: it {'lacks' if missing else 'has'} {listed}{more}, {'' if missing else 'not '}of {what}"
            )
        for name, shape in expected.items():
            if self.shapes[name] != tuple(shape):
                raise UserError(
                    f"{self.path}: {name} has shape {list(self.shapes[name])}, and that of {what} has {list(shape)}"
                )

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor with so many axes, none of them empty. Raises UserError where there is none."""
        shape = self.shapes.get(name)
        if shape is None:
            raise UserError(f"{self.path}: it lacks {name}")
        if len(shape) != axes or 0 in shape:
            raise UserError(
                f"{self.path}: {name} has shape {list(shape)}, and {plural(axes, 'axis', 'axes')} are needed"
            )
        return shape

    def read(self) -> dict[str, Tensor]:
        """All tensors, in float32. Raises UserError, also where one holds NaN or an infinity."""
        try:
            tensors = {name: self._file.get_tensor(stored).to(torch.float32) for name, stored in self._names.items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path}: cannot be read just now ({error})") from error
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(f"{self.path}: {self._names[name][:80]} holds NaN or an infinity; give other weights")
        return tensors


def save_weights(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError or SafetensorError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
