"""`diffpipe report RUN [--out FILE] [--watch] [--port N]`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe report runs/photos", "diffpipe report runs/photos --watch")
    parser.add_argument(
        "run", type=types.local_path, metavar="RUN", help="a run directory, of a run that trains or has ended"
    )
    parser.add_argument("--out", type=types.local_path, metavar="FILE", help="the page (default: RUN/report.html)")
    text = "serve the page on this machine, to this machine alone, and keep it up to date until Ctrl-C"
    parser.add_argument("--watch", action="store_true", help=text)
    parser.add_argument("--port", type=int, default=0, help="of --watch (default: a free one)")


def run(args: argparse.Namespace) -> None:
    if not is_main_process():
        return
    if args.watch:
        from diffpipe.report.report_server import watch_report

        watch_report(args.run, args.port, lambda url: options.print_result(f"{url} (Ctrl-C ends it)", url=url))
    else:
        from diffpipe.report.run_report import write_report

        out = write_report(args.run, args.out or args.run / "report.html")
        options.print_result(str(out), out, run=args.run)
