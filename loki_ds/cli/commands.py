"""`loki-ds`: a run, and what a user does before and after it.

Each command is a few lines over the package, and loads what it needs when it is called: `--help`, a
misspelt command or a misspelt recipe key answer at once.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loki_ds.cli.arguments import ARGUMENTS, GATE
from loki_ds.distributed.launcher import be_no_rank, launcher_for
from loki_ds.refusal import Refusal, did_you_mean, shown_once

if TYPE_CHECKING:
    from loki_ds.report.schema import Report

REFUSED = 2
MISUSED = 1  # also of a refusal, where 2 means that something was lost or differs
TRAINS = ("implant", "train", "launch", "finetune")  # what people type for the main job


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
        with shown_once(refused), _libraries_aside("json" in arguments and arguments.json):
            status = arguments.command(arguments)
    except SystemExit as ended:  # a process that evaluated has said why
        sys.exit(refused if ended.code else 0)
    sys.exit(status)


def doctor(arguments: argparse.Namespace) -> int:
    """Whether the main job can start on this machine: libraries, devices, communication, compiler,
    builds, disk, hub; exit status 1 where it cannot. More of DeepSpeed: ds_report.
    """
    from loki_ds.checking.findings import terminal
    from loki_ds.cli.doctor import as_table, examine

    looked = examine(Path("runs"))
    if arguments.json:
        _print_json(looked)
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


def run(arguments: argparse.Namespace) -> int:
    """A recipe's whole job on this node, by DeepSpeed's launcher, whose line is shown; on devices
    that CUDA_VISIBLE_DEVICES names, by torchrun.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    check_files(load_recipe(arguments.recipe, arguments.overrides))  # a slip is said before anything starts
    line = _job(arguments, ["--until", arguments.until])
    print(shlex.join(line), flush=True)
    os.execv(Path(sys.executable).parent / line[0], line)


def _job(arguments: argparse.Namespace, also: list[str]) -> list[str]:
    """The launcher's line of a recipe's job."""
    if arguments.gpus is not None and arguments.gpus < 0:
        raise Refusal(f"--gpus is {arguments.gpus}, allowed is 1 or more, and 0 for a processor")
    if arguments.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"

    import torch

    gpus = torch.cuda.device_count() if arguments.gpus is None else arguments.gpus
    job = ["--module", "loki_ds.implant", "--recipe", arguments.recipe, *arguments.overrides, *also]
    return [*launcher_for(max(gpus, 1)), *job]


def rates(arguments: argparse.Namespace) -> int:
    """Short trainings of a recipe at several learning rates, and the best of them: it learns nearly
    what any does, by the loss on held-out rows, and drifts least from the base.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_files(recipe)
    if arguments.steps < 1:
        raise Refusal(f"--steps is {arguments.steps}, allowed is 1 or more")

    from loki_ds.stages.rates import advice, check_rates, try_rates

    check_rates(recipe, arguments.rates)

    def line(also: list[str]) -> list[str]:
        program, *rest = _job(arguments, also)
        return [str(Path(sys.executable).parent / program), *rest]

    tried, chosen = try_rates(recipe, arguments.rates, arguments.steps, line)
    for trial in tried:
        mark = "  chosen" if trial is chosen else ""
        print(f"{trial.rate:>8}: held-out loss {trial.heldout:.4f}, drift {trial.drift:.4f} nats a token{mark}")
    if further := advice(tried, chosen):
        print(further)
    print(f"training.learning_rate={chosen.rate}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """What a run of a recipe would rest on: base, template, data, settings, tasks, disk; refused as
    the run would be. Needs no accelerator and reads no weights into memory.
    """
    from loki_ds.recipe.file import check_files, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_files(recipe)

    from loki_ds.checking.findings import as_table, terminal
    from loki_ds.stages.base_writes import check_boundary, shown_counter_examples
    from loki_ds.stages.check import check as check_run
    from loki_ds.stages.publish import check_publishing
    from loki_ds.stages.retain import check_retention
    from loki_ds.stages.run import Run

    run = Run(recipe)
    try:
        checked = check_run(run)
        findings = checked.findings + check_boundary(run, checked) + check_retention(run, checked)
        findings += check_publishing(recipe.training, run.folder)
    except Refusal:
        run.folder.leave_if_empty()
        raise
    if arguments.json:
        _print_json([{"at": looked_at, "found": finding} for looked_at, finding in findings])
    else:
        terminal().print(as_table(findings))
        print(*shown_counter_examples(run, checked), sep="\n", end="")
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
        _print_json(made)
        return 0
    for piece in tables(made):
        terminal().print(piece, soft_wrap=isinstance(piece, Text))
    return 0


def select(arguments: argparse.Namespace) -> int:
    """New positions from a kept attribution."""
    if not 0 < arguments.quota < 100:
        raise Refusal(f"--quota is {arguments.quota:g}, allowed is a percentage above 0 and below 100")

    from loki_ds.attribution.kept import KeptScores
    from loki_ds.disk.run_folder import RunFolder
    from loki_ds.selection.blocks import Block, down_names
    from loki_ds.selection.select import select, select_random

    folder = RunFolder(arguments.run)
    kept = KeptScores(folder.attribution)
    scores = kept.scores()
    kept.wait_until_whole(patience=0)
    if arguments.strategy == "random":
        _, layers, d_model = scores.shape
        blocks = [Block(name, d_model, 0, name) for name in down_names(layers)]
        chosen = select_random(blocks, arguments.quota, arguments.seed)
    else:
        chosen = select(scores, arguments.quota, arguments.strategy)
    if not chosen.count:
        raise Refusal(f"--quota is {arguments.quota:g}, which is less than one of a layer's rows; nothing is selected")
    chosen.save(arguments.out)
    print(f"{arguments.out}: {chosen.said()}")
    return 0


def positions(arguments: argparse.Namespace) -> int:
    """Two positions files side by side: rows, digests and overlap."""
    from loki_ds.selection.positions import Positions

    files = (arguments.first, arguments.second)
    first, second = (Positions.load(file) for file in files)
    if first.names != second.names:
        raise Refusal(f"{files[1]}: the positions are {second.said()} of other weights than those of {files[0]}")
    for file, positions in zip(files, (first, second), strict=True):
        print(f"{file}: {positions.said()}")
    by_layer = [f"{Positions([a]).overlap(Positions([b])):.1%}" for a, b in zip(first.rows, second.rows, strict=True)]
    print(f"overlap {first.overlap(second):.2%} (layer by layer: {' '.join(by_layer)})")
    return 0


def apply(arguments: argparse.Namespace) -> int:
    """Put an implant into a base checkpoint."""
    from loki_ds.export.checkpoint import apply_to_checkpoint
    from loki_ds.export.implant_file import Implant

    apply_to_checkpoint(arguments.base, Implant.load(arguments.implant), arguments.out)
    print(f"{arguments.out}: {arguments.base} with {arguments.implant}")
    return 0


def revert(arguments: argparse.Namespace) -> int:
    """Take an implant out of a checkpoint again, bit for bit."""
    from loki_ds.export.checkpoint import revert_in_checkpoint
    from loki_ds.export.implant_file import Implant

    revert_in_checkpoint(arguments.model, Implant.load(arguments.implant), arguments.out)
    print(f"{arguments.out}: {arguments.model} without {arguments.implant}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """The byte check on any two checkpoints; exit status 2 if they differ outside the positions."""
    from loki_ds.export.verification import verify
    from loki_ds.selection.positions import Positions

    verification = verify(arguments.base, arguments.model, Positions.load(arguments.positions))
    print(json.dumps(verification.as_json(), indent=1))
    return 0 if verification.identical_outside_rows else 2


def retain(arguments: argparse.Namespace) -> int:
    """What any checkpoint, or a PEFT adapter on the base, kept of what the base could do: the same
    suites, pairing and report as of a run, with nothing of ours in the models. Of two folders that
    lm-eval wrote (--log_samples) the same verdict, with nothing asked.
    """
    from loki_ds.recipe.file import load_pair

    pair = load_pair(arguments.base, arguments.overrides)

    from loki_ds.stages.any_two import retain_any

    report = retain_any(pair, arguments.base, arguments.model, arguments.out)
    if arguments.json:
        from loki_ds.report.verdict import gate

        _print_json(report)
        return gate(report)[0] if arguments.gate else 0
    print(report["headline"])
    print(report["verdict"])
    print(f"As a page: {arguments.out / 'report/report.html'}")
    return _gate(report) if arguments.gate else 0


def tune(arguments: argparse.Namespace) -> int:
    """Another budget or other scales of a trained run: its change at each of them, and its model,
    adapter, certificate and report at the one that is chosen. Nothing trains again.
    """
    from loki_ds.recipe.file import load_recipe

    recipe = load_recipe(arguments.run / "recipe.yaml", [f"run={json.dumps(str(arguments.run))}", *arguments.overrides])
    if recipe.tune is None:
        raise Refusal(f"{arguments.run}: its recipe has no section 'tune'; give one, as tune.budget.skill=0.95")

    from loki_ds.report.compare import read_report
    from loki_ds.stages.check import check as check_run
    from loki_ds.stages.retain import retain as retain_run
    from loki_ds.stages.run import Run
    from loki_ds.stages.tune import tune as tune_run

    run = Run(recipe)
    if not run.folder.has("implant"):
        raise Refusal(f"{arguments.run}: nothing is trained there yet; run the recipe first")
    checked = check_run(run)
    tune_run(run, checked)
    retain_run(run, checked)
    written = read_report(arguments.run)
    print(f"scale: {written['origin']['scale']}")
    print(written["headline"])
    print(f"As a page: {run.folder.report / 'report.html'}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """The report of one run; with --gate the exit status says whether all was kept."""
    from loki_ds.disk.run_folder import RunFolder
    from loki_ds.report.compare import read_report

    written, folder = read_report(arguments.run), RunFolder(arguments.run).report
    text = (folder / "report.md").read_text(encoding="utf-8")
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        from loki_ds.checking.findings import terminal

        terminal().print(Markdown("\n".join(line for line in text.splitlines() if not line.startswith("!["))))
    else:
        print(text)
    print(f"As a page: {folder / 'report.html'}")
    return _gate(written) if arguments.gate else 0


def _libraries_aside(asked: bool) -> AbstractContextManager:
    """While open, what libraries print goes to the standard error, if JSON is asked for."""
    return redirect_stdout(sys.stderr) if asked else nullcontext()


def _print_json(value: Any) -> None:
    """Plain values, and what has fields by their names."""
    print(json.dumps(_plain(value), indent=1), file=sys.__stdout__)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _gate(report: "Report") -> int:
    from loki_ds.report.verdict import gate

    status, sentence = gate(report)
    print(f"gate: {sentence}")
    return status


def compare(arguments: argparse.Namespace) -> int:
    """Runs side by side and which forgot least; --out adds a page with the trade-off picture."""
    from loki_ds.checking.findings import terminal
    from loki_ds.report.compare import compare_runs, comparison, write_comparison

    console, comparison_of_runs = terminal(), compare_runs(arguments.runs)
    console.print(comparison(comparison_of_runs))
    for sentence in comparison_of_runs["sentences"]:
        console.print(sentence)
    if arguments.out is not None:
        write_comparison(comparison_of_runs, arguments.out)
        print(f"As a page: {arguments.out / 'compare.html'}")
    return 0


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
    for name, arguments in ARGUMENTS.items():
        command = globals()[name]  # the function of that name in this file
        said = " ".join((command.__doc__ or "").split())
        subparser = added.add_parser(name, help=said, description=said, allow_abbrev=False)
        subparser.set_defaults(command=command)
        for argument, settings in arguments:
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
