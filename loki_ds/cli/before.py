"""What a user does before a run: look at the machine, write a recipe, check and plan it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from loki_ds.cli.output import print_json
from loki_ds.refusal import Refusal


def doctor(arguments: argparse.Namespace) -> int:
    """Whether the main job can start on this machine: libraries, devices, communication, compiler,
    builds, disk, hub; exit status 1 where it cannot. More of DeepSpeed: ds_report.
    """
    from loki_ds.checking.findings import terminal
    from loki_ds.cli.doctor import as_table, examine

    looked = examine(Path("runs"))
    if arguments.json:
        print_json(looked)
    else:
        terminal().print(as_table(looked))
    return 1 if any(look.stops for look in looked) else 0


def recipes(arguments: argparse.Namespace) -> int:
    """The recipes that come with the package, a line each; with a name, a copy of it to change."""
    from loki_ds.recipe.shipped import copy_recipe, listed

    print("\n".join(listed() if arguments.name is None else map(str, copy_recipe(arguments.name))))
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of a recipe, for editors; the recipes' first line names a copy of it."""
    from loki_ds.checking.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))
    return 0


def new(arguments: argparse.Namespace) -> int:
    """A recipe of your own: asks for model, data, what must stay and GPUs, where no option says it,
    and writes them down with a comment on every line.
    """
    from loki_ds.recipe.new import Wanted, recipe_text, suites
    from loki_ds.recipe.sections import DATA_FILES

    if arguments.file.exists():
        raise Refusal(f"{arguments.file}: there already")
    wanted = Wanted(
        model=arguments.model or _answer("--model", "Which model (a folder or a hub id)?"),
        data=arguments.data or _answer("--data", "What is learned (a file or a hub id)?"),
        keep=arguments.keep or _answer("--keep", f"What must stay ({', '.join(suites())})?", "quick"),
        gpus=_number(arguments.gpus if arguments.gpus is not None else _answer("--gpus", "How many GPUs?", "1")),
    )
    if Path(wanted.data).suffix in DATA_FILES and not Path(wanted.data).exists():
        raise Refusal(f"--data is {wanted.data}: no such file")
    if wanted.keep not in suites():
        raise Refusal(f"--keep is {wanted.keep}, allowed are {', '.join(suites())}")
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(recipe_text(wanted, arguments.file), encoding="utf-8")
    print(f"{arguments.file}: look before you start with loki-ds check {arguments.file}")
    return 0


def _number(given: Any) -> int:
    if not str(given).isdigit():
        raise Refusal(f"--gpus is {given}, allowed is a number, 0 for a processor")
    return int(given)


def _answer(option: str, question: str, otherwise: str = "") -> str:
    """What the user types, or what is taken otherwise.

    Raises:
        Refusal: nobody is there to answer.
    """
    if not sys.stdin.isatty():
        raise Refusal(f"{option} is missing, and nobody is there to ask")
    given = input(f"{question} {f'[{otherwise}] ' if otherwise else ''}").strip() or otherwise
    return given or _answer(option, question, otherwise)


def completion(arguments: argparse.Namespace) -> int:
    """What a shell needs to complete commands, recipes and keys, as its start file reads it:
    eval "$(loki-ds completion bash)".
    """
    import argcomplete

    print(argcomplete.shellcode(["loki-ds"], shell=arguments.shell))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """What a run of a recipe would rest on: base, template, data, settings, tasks, disk; refused as
    the run would be. Needs no accelerator and reads no weights into memory.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_files(recipe)

    from loki_ds.checking.findings import as_table, terminal
    from loki_ds.stages.base_writes import Writing
    from loki_ds.stages.check import check as check_run
    from loki_ds.stages.publish import check_publishing
    from loki_ds.stages.retain import check_retention
    from loki_ds.stages.run import Run

    run = Run(recipe)
    try:
        checked = check_run(run)
        writing = Writing.of(run, checked)
        findings = checked.findings + (writing.findings() if writing else []) + check_retention(run, checked)
        findings += check_publishing(recipe.training, run.folder)
    except Refusal:
        run.folder.leave_if_empty()
        raise
    if arguments.json:
        print_json([{"at": looked_at, "found": finding} for looked_at, finding in findings])
    else:
        terminal().print(as_table(findings))
        print(*(writing.shown() if writing else []), sep="\n", end="")
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """What a recipe would train and need: memory, traffic, time on so many GPUs; and one training
    example. Loads no weights.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    if arguments.ranks < 1:
        raise Refusal(f"--ranks is {arguments.ranks}, allowed is 1 or more")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_files(recipe)

    from rich.text import Text

    from loki_ds.checking.findings import terminal
    from loki_ds.planning.hardware import gpu
    from loki_ds.planning.plan import make_plan
    from loki_ds.planning.table import tables

    made = make_plan(recipe, gpu(arguments.gpu, arguments.memory, arguments.tflops), arguments.ranks)
    if arguments.json:
        print_json(made)
        return 0
    for piece in tables(made):
        terminal().print(piece, soft_wrap=isinstance(piece, Text))
    return 0
