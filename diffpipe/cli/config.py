"""`diffpipe config show|schema|keys`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe config show configs/fashion_mnist/ddpm.yaml train.steps=100",
        "diffpipe config keys stage.network",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the resolved config: the file, the overrides and all defaults")
    show.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file, such as train.steps=100")
    schema = actions.add_parser("schema", help="print the JSON schema of a config, for editors and other tools")
    schema.add_argument("config", nargs="?", metavar="CONFIG", help="only with the stage of this YAML file")
    keys = actions.add_parser("keys", help="print every key with its type, default and meaning")
    keys.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only these, such as stage.network")
    keys.add_argument("--markdown", action="store_true", help="as the tables in configs/README.md")


def run(args: argparse.Namespace) -> None:
    from diffpipe.config import dump_yaml, load_config
    from diffpipe.config.reference import as_markdown, as_text, sections
    from diffpipe.experiment.config import Experiment

    if args.action == "show":
        config = load_config(Experiment, args.config, args.overrides)
        options.print_result(dump_yaml(config).rstrip("\n"), config=config.model_dump(mode="json"))
    elif args.action == "schema":
        schema = _schema(args.config)
        options.print_result(json.dumps(schema, indent=2, ensure_ascii=False), schema=schema)
    else:
        keys = [key for section in sections(Experiment) for key in section.keys if key.name.startswith(args.prefix)]
        if not keys:
            raise UserError(f"no key begins with {args.prefix}; `diffpipe config keys` lists all")
        text = as_markdown(Experiment) if args.markdown else as_text(Experiment, args.prefix)
        options.print_result(text.rstrip("\n"), keys=[key._asdict() for key in keys])


def _schema(path: str | None) -> dict[str, Any]:
    """The schema of every config, or of those with the same kind of stage as the config at `path`."""
    from pydantic import create_model

    from diffpipe.config import load_config
    from diffpipe.experiment.config import Experiment

    if path is None:
        return Experiment.model_json_schema()
    stage = type(load_config(Experiment, path).stage)
    return create_model("Experiment", __base__=Experiment, stage=(stage, ...)).model_json_schema()
