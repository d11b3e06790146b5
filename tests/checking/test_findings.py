"""What was found is shown as it is."""

from loki_ds.checking.findings import as_table, terminal


def test_brackets_in_a_text_are_text() -> None:
    console = terminal()
    with console.capture() as shown:
        console.print(as_table([("template", "calls are written as text, [name(argument=1)]")]))
    assert "[name(argument=1)]" in shown.get()
