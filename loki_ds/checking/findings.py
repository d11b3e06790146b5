"""What was looked at and what was found, for the terminal."""

from rich.console import Console
from rich.table import Table

Findings = list[tuple[str, str]]
GIB = 2**30


def terminal() -> Console:
    """Where tables are shown; brackets in a text are text, and no markup of rich's."""
    return Console(markup=False, emoji=False)


def as_table(findings: Findings) -> Table:
    """One line for each."""
    table = Table(title="check", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a path is wrapped, never cut
    for looked_at, finding in findings:
        table.add_row(looked_at, finding)
    return table
