"""The size of a compressed file beside the likelihood that the run says, and other formats' sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffpipe.evaluation.compression import Compression
from diffpipe.evaluation.image_formats import FormatSizes
from diffpipe.evaluation.likelihood import Likelihoods
from diffpipe.plural import plural


class CompressionReport(NamedTuple):
    """A written file, its length in bytes, and the likelihoods and the other formats' sizes of the same images.

    None where they were not asked for.
    """

    compression: Compression
    bytes: int
    likelihoods: Likelihoods | None = None
    formats: FormatSizes | None = None

    def table(self) -> str:
        """A line for the file, and one for each number that it is held against."""
        pixels = self.compression.bits // 8
        n = len(self.compression.file.header.keys)
        lines = [
            ("on disk", f"{self.compression.bits_per_dim:.3f} bits/dim", self._about_bytes(pixels)),
        ]
        if self.likelihoods is not None:
            mean = f"{self.likelihoods.mean('score'):.3f}"
            error = f" ± {self.likelihoods.standard_error('score'):.3f}" if n > 1 else ""
            steps = self.compression.file.header.steps
            chain = "" if steps is None else f", of a chain of {steps} steps"
            lines.append(("nll", f"{mean} bits/dim", f"{self.likelihoods.kind}{error}{chain}"))
        if self.formats is not None:
            bits = self.formats.bits_per_dim()
            lines += [
                (name, f"{bits[name]:.3f} bits/dim", f"{size:,} bytes") for name, size in self.formats.bytes.items()
            ]
            lines += [(name, "—", reason) for name, reason in self.formats.missing.items()]
        width = max(len(name) for name, *_ in lines)
        rows = [f"{name:>{width}}  {value} ({about})" for name, value, about in lines]
        return "\n".join([f"{plural(n, 'image')}, {self.bytes:,} bytes", *rows])

    def tree(self) -> dict[str, Any]:
        """The same as JSON values."""
        header = self.compression.file.header
        tree: dict[str, Any] = {"n": len(header.keys), "steps": header.steps, "bytes": self.bytes}
        scores = {"bits_per_dim": self.compression.bits_per_dim}
        if self.likelihoods is not None:
            scores["nll"] = self.likelihoods.mean("score")
        return tree | {"scores": scores, "formats": None if self.formats is None else self.formats.bits_per_dim()}

    def _about_bytes(self, pixels: int) -> str:
        initial = self.compression.initial_bits // 8
        began = f", {initial:,} of them initial bits" if initial else ""
        return f"{pixels:,} bytes{began}; names, labels and header: {self.bytes - pixels:,}"
