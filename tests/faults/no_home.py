"""`python -m tests.faults.no_home …`: `python -m diffpipe …` as a user that the machine does not know (a container)."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from typing import Any

from diffpipe.__main__ import main


def unknown(user: int) -> Any:
    raise KeyError(f"getpwuid(): uid not found: {user}")


if __name__ == "__main__":
    pwd.getpwuid = unknown
    tempfile.tempdir = None  # the tests' server has looked for it before
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        os.environ.pop(name, None)
    sys.exit(main())
