"""`diffpipe completion bash|zsh|fish`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.process import is_main_process
from diffpipe.shell_completion import SHELLS

_NOTES = "Make the script again after an update. In zsh, the folder has to be one of $fpath."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe completion bash > ~/.local/share/bash-completion/completions/diffpipe",
        "diffpipe completion zsh > ~/.zfunc/_diffpipe",
        "diffpipe completion fish > ~/.config/fish/completions/diffpipe.fish",
        notes=_NOTES,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def run(args: argparse.Namespace) -> None:
    from diffpipe.config.reference import choices
    from diffpipe.experiment.config import Experiment
    from diffpipe.shell_completion import completion_script

    if is_main_process():
        script = completion_script(args.shell, args.parser, choices(Experiment))
        options.print_result(script.rstrip("\n"), script=script)
