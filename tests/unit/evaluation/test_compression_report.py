"""The text about a compressed file."""

from __future__ import annotations

import numpy as np
import torch

from diffpipe.coding.compressed_file import Block, CompressedFile, Header
from diffpipe.evaluation.compression import Compression
from diffpipe.evaluation.compression_report import CompressionReport
from diffpipe.evaluation.image_formats import FormatSizes
from diffpipe.evaluation.likelihood import Likelihoods

HEADER = Header(
    stage="vae",
    checkpoint="0" * 64,
    weights="ema",
    coded_on={},
    shape=(1, 10, 10),
    keys=["a", "b"],
    labels=None,
    classes=None,
    seed=0,
    blocks=[Block((1, 1), 25, "", "")],
)
COMPRESSION = Compression(CompressedFile(HEADER, [np.zeros(25, np.uint32)]), initial_bits=64)


def test_the_table_has_the_file_the_likelihood_and_the_other_formats() -> None:
    likelihoods = Likelihoods({"score": torch.tensor([3.5, 4.0]).double()}, "bits/dim", "bound", None)
    formats = FormatSizes({"PNG": 1050, "WebP": 125}, 200, {"JPEG XL": "pip install 'diffpipe[jxl]' to see it"})
    assert CompressionReport(COMPRESSION, 1100, likelihoods, formats).table().splitlines() == [
        "2 images, 1,100 bytes",
        "on disk  4.000 bits/dim (100 bytes, 8 of them initial bits; names, labels and header: 1,000)",
        "    nll  3.750 bits/dim (bound ± 0.250)",
        "    PNG  42.000 bits/dim (1,050 bytes)",
        "   WebP  5.000 bits/dim (125 bytes)",
        "JPEG XL  — (pip install 'diffpipe[jxl]' to see it)",
    ]


def test_without_a_comparison_it_is_the_file_alone() -> None:
    report = CompressionReport(COMPRESSION._replace(initial_bits=0), 1100)
    assert report.table().splitlines()[1:] == ["on disk  4.000 bits/dim (100 bytes; names, labels and header: 1,000)"]
