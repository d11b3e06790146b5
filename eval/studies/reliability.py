"""What was broken on purpose, and what happened: the table of the last test run, from pytest's own
record of it.

make test reliability        # writes eval/reports/reliability.md
"""

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, paragraph, table, write

BAD_INPUT = "test_refused_by_name"
RECORD = ROOT / "build/tests.xml"
MODULES = (
    "tests.reliability.",
    "tests.distributed.test_refusals",
    "tests.distributed.test_nodes",
    "tests.distributed.test_resume",
)


def main() -> None:
    if not RECORD.exists():
        sys.exit(f"{RECORD}: no record of a test run there; run make test first")
    cases = [
        (case.attrib["name"], case.find("failure") is not None or case.find("error") is not None)
        for case in ElementTree.parse(RECORD).iter("testcase")
        if case.attrib["classname"].startswith(MODULES)
    ]
    write_report(sorted(cases))


def write_report(cases: list[tuple[str, bool]]) -> None:
    inputs = [(parameter(name).partition(":")[0], failed) for name, failed in cases if name.startswith(BAD_INPUT)]
    others = [(words(name), failed) for name, failed in cases if not name.startswith(BAD_INPUT)]
    tried, failures = Counter(kind for kind, _ in inputs), Counter(kind for kind, failed in inputs if failed)
    about = (
        "`make test reliability`: faults through the real launcher on two CPU ranks, and bad input. As it should: "
        "every rank ended in time and non-zero, the cause was named once, nothing half-written was left, and the same "
        "command then ended as an unbroken run."
    )
    refused = f"{len(inputs) - sum(failures.values())} of {len(inputs)} cases refused by name."
    outcomes = [(what, "failed" if failed else "as it should") for what, failed in others]
    write(
        "reliability",
        "Reliability",
        paragraph(about),
        table(["what", "outcome"], outcomes, words=2),
        f"Bad input, one sentence each: {refused}",
        table(
            ["kind", "cases", "refused by name"],
            [(kind, count, count - failures[kind]) for kind, count in tried.items()],
        ),
    )


def parameter(name: str) -> str:
    return name.partition("[")[2].removesuffix("]")


def words(name: str) -> str:
    test = re.sub(r"^test_", "", name.partition("[")[0]).replace("_", " ")
    return f"{test}: {parameter(name)}" if "[" in name else test


if __name__ == "__main__":
    main()
