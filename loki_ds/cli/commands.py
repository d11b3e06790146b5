"""`loki-ds`: a run, and what a user does before and after it.

Each command is a few lines over the package, and loads what it needs when it is called: `--help`, a
misspelt command or a misspelt recipe key answer at once.
"""

import argparse
import os
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loki_ds.cli.arguments import ARGUMENTS, GATE
from loki_ds.cli.before import check, completion, doctor, new, plan, recipes, schema
from loki_ds.cli.jobs import rates, run, tune
from loki_ds.cli.judging import compare, report, retain
from loki_ds.cli.output import libraries_aside
from loki_ds.cli.rows import apply, positions, revert, select, verify
from loki_ds.distributed.launcher import be_no_rank
from loki_ds.refusal import Refusal, did_you_mean, shown_once

REFUSED = 2
MISUSED = 1  # also of a refusal, where 2 means that something was lost or differs
TRAINS = ("implant", "train", "launch", "finetune")  # what people type for the main job
COMMANDS = (
    *(doctor, new, recipes, schema, completion, check, plan, run, rates, tune),
    *(retain, report, compare, select, positions, apply, revert, verify),
)


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    be_no_rank()
    warnings.simplefilter("ignore", FutureWarning)  # for the libraries' authors, not for whoever runs this
    refused = MISUSED if GATE in sys.argv or sys.argv[1:2] == ["verify"] else REFUSED
    try:
        with shown_once(MISUSED):
            arguments = _arguments()
    except SystemExit as ended:  # argparse has said why
        sys.exit(MISUSED if ended.code else 0)
    try:
        with shown_once(refused), libraries_aside("json" in arguments and arguments.json):
            status = arguments.command(arguments)
    except SystemExit as ended:  # a process that evaluated has said why
        sys.exit(refused if ended.code else 0)
    sys.exit(status)


def _arguments() -> argparse.Namespace:
    """The command line; overrides may stand before or after options (argparse refuses that).

    Raises:
        Refusal: a command that is none.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, and reads what is said here alone
        import argcomplete

        argcomplete.autocomplete(parser)
    if not sys.argv[1:]:
        parser.print_help()
        parser.exit(0)
    word = sys.argv[1]
    if not word.startswith("-") and word not in ARGUMENTS:
        near = "; did you mean 'run'?" if word in TRAINS else did_you_mean(word, ARGUMENTS)
        raise Refusal(f"{word!r} is no command{near}")
    arguments, left = parser.parse_known_args()
    if left and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loki-ds", allow_abbrev=False, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"loki-ds {version('loki-ds')}")
    added = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        name = command.__name__
        said = " ".join((command.__doc__ or "").split())
        subparser = added.add_parser(name, help=said, description=said, allow_abbrev=False)
        subparser.set_defaults(command=command)
        for argument, settings in ARGUMENTS[name]:
            added_argument: Any = subparser.add_argument(argument, **settings)
            if argument in COMPLETED:
                added_argument.completer = COMPLETED[argument]
    return parser


def _recipes_that_begin(prefix: str, **_: Any) -> list[str]:
    from loki_ds.recipe.shipped import recipe_names

    return [*recipe_names(), *map(str, Path().glob(f"{prefix}*.yaml"))]


def _keys(**_: Any) -> list[str]:
    from loki_ds.recipe.file import all_keys

    return [f"{key}=" for key in all_keys()]


COMPLETED = {"recipe": _recipes_that_begin, "overrides": _keys}  # of a command's arguments


if __name__ == "__main__":
    main()
