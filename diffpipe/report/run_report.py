"""The report of a run as a file."""

from __future__ import annotations

from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.files import atomic_write
from diffpipe.report.run_page import run_page
from diffpipe.report.run_record import read_run


def write_report(home: Path, out: Path) -> Path:
    """Write the page of a run. Raises UserError."""
    page = run_page(read_run(home))
    try:
        atomic_write(out, page)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    return out
