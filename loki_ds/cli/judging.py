"""What was kept: of any two models, of a run, of several runs."""

import argparse
import sys

from loki_ds.cli.output import print_gate, print_json


def retain(arguments: argparse.Namespace) -> int:
    """What any checkpoint, or a PEFT adapter on the base, kept of what the base could do: the same
    suites, pairing and report as of a run, with nothing of ours in the models. Of two folders that
    lm-eval (--log_samples) or lighteval (--save-details) wrote the same verdict, with nothing
    asked.
    """
    from loki_ds.recipe.file import load_pair

    pair = load_pair(arguments.base, arguments.overrides)

    from loki_ds.stages.any_two import retain_any

    report = retain_any(pair, arguments.base, arguments.model, arguments.out)
    if arguments.json:
        from loki_ds.report.verdict import gate

        print_json(report)
        return gate(report)[0] if arguments.gate else 0
    print(report["headline"])
    print(report["verdict"])
    print(f"As a page: {arguments.out / 'report/report.html'}")
    return print_gate(report) if arguments.gate else 0


def report(arguments: argparse.Namespace) -> int:
    """The report of one run; with --gate the exit status says whether all was kept, with --samples
    the answers behind it are written for lm-eval's own tools.
    """
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
    if arguments.samples is not None:
        from loki_ds.stages.report import write_samples

        base, model = write_samples(arguments.run, arguments.samples)
        print(f"As lm-eval's samples: {base}, {model}")
    return print_gate(written) if arguments.gate else 0


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
