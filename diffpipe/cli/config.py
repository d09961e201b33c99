"""`diffpipe config show|diff|schema|keys`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.errors import UserError

if TYPE_CHECKING:
    from diffpipe.experiment.config import Experiment

_CONFIG = "YAML file of an experiment, or a run directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe config show configs/fashion_mnist/ddpm.yaml train.steps=100",
        "diffpipe config diff configs/fashion_mnist/ddpm.yaml runs/fashion_mnist/ddpm",
        "diffpipe config keys stage.network",
        notes="`diff` exits with status 1 where the configs differ, and 0 where they are the same.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = options.add_action(actions, "show", "print the resolved config: the file, the overrides and all defaults")
    show.add_argument("config", type=types.local_path, metavar="CONFIG", help=_CONFIG)
    show.add_argument("overrides", nargs="*", metavar="key=value", help=options.OVERRIDES)
    text = "print the keys that differ between two resolved configs, with both values"
    diff = options.add_action(actions, "diff", text)
    diff.add_argument("first", type=types.local_path, metavar="A", help=_CONFIG)
    diff.add_argument("second", type=types.local_path, metavar="B", help=_CONFIG)
    schema = options.add_action(actions, "schema", "print the JSON schema of a config, for editors and other tools")
    schema.add_argument(
        "config", nargs="?", type=types.local_path, metavar="CONFIG", help="only with the stage of this YAML file"
    )
    keys = options.add_action(actions, "keys", "print every key with its type, default and meaning")
    keys.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only these, such as stage.network")
    keys.add_argument("--markdown", action="store_true", help="as the tables in configs/README.md")


def run(args: argparse.Namespace) -> int:
    """The exit status: 1 where two configs differ, else 0."""
    from diffpipe.config import dump_yaml
    from diffpipe.config.reference import as_markdown, as_text, nearest_keys, sections
    from diffpipe.experiment.config import Experiment

    if args.action == "show":
        config = _load(args.config, args.overrides)
        options.print_result(dump_yaml(config).rstrip("\n"), config=config.model_dump(mode="json"))
    elif args.action == "diff":
        return _print_differences(_load(args.first), _load(args.second))
    elif args.action == "schema":
        schema = _schema(args.config)
        options.print_result(json.dumps(schema, indent=2, ensure_ascii=False), schema=schema)
    else:
        keys = [key for section in sections(Experiment) for key in section.keys if key.name.startswith(args.prefix)]
        if not keys:
            near = " or ".join(nearest_keys(Experiment, args.prefix))
            remedy = f"did you mean {near}?" if near else "`diffpipe config keys` lists all"
            raise UserError(f"no key begins with {args.prefix}; {remedy}")
        text = as_markdown(Experiment) if args.markdown else as_text(Experiment, args.prefix)
        options.print_result(text.rstrip("\n"), keys=[key._asdict() for key in keys])
    return 0


def _load(path: Path, overrides: list[str] | None = None) -> Experiment:
    from diffpipe.config import load_config
    from diffpipe.experiment.config import Experiment

    return load_config(Experiment, path / "config.yaml" if path.is_dir() else path, overrides or ())


def _print_differences(first: Experiment, second: Experiment) -> int:
    from diffpipe.config.differences import differences

    pairs = differences(first.model_dump(mode="json"), second.model_dump(mode="json"))
    text = "\n".join(map(str, pairs)) or "no key differs"
    options.print_result(text, differences=[pair.as_dict() for pair in pairs])
    return 1 if pairs else 0


def _schema(path: Path | None) -> dict[str, Any]:
    """The schema of every config, or of those with the same kind of stage as the config at `path`."""
    from pydantic import create_model

    from diffpipe.config.json_schema import json_schema
    from diffpipe.experiment.config import Experiment

    if path is None:
        return json_schema(Experiment)
    return json_schema(create_model("Experiment", __base__=Experiment, stage=(type(_load(path).stage), ...)))
