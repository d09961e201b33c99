"""`python -m tests.faults.interrupt_at …`: `python -m diffpipe …` that gets a Ctrl-C at a certain moment.

INTERRUPT_AT in the environment says when: a number n, for the n-th import, or the path of the output, for the moment
at which the command first opens a file of it to write.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from diffpipe.__main__ import main


def interrupt_at(place: str) -> None:
    imports, done = 0, False

    def audit(event: str, args: tuple[Any, ...]) -> None:
        nonlocal imports, done
        imports += event == "import"
        written = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and place in str(args[0])
        if not done and (written or (event == "import" and place == str(imports))):
            done = True
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(audit)


if __name__ == "__main__":
    interrupt_at(os.environ["INTERRUPT_AT"])
    sys.exit(main())
