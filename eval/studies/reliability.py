"""What was broken on purpose, and what happened: runs tests/reliability and the launcher's refusals, writes eval/reports/reliability.md.

make reliability
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TESTS = ["tests/reliability", "tests/distributed/test_refusals.py"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        done = subprocess.run([sys.executable, "-m", "pytest", *TESTS, f"--junitxml={results}"], cwd=ROOT, check=False)
        cases = ElementTree.parse(results).iter("testcase")
        (ROOT / "eval/reports/reliability.md").write_text(
            as_markdown([(case.get("name", ""), outcome(case), seconds(case)) for case in cases])
        )
    sys.exit(done.returncode)


def outcome(case: ElementTree.Element) -> str:
    return next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "as it should")


def seconds(case: ElementTree.Element) -> float:
    return float(case.get("time", 0))


def as_markdown(cases: list[tuple[str, str, float]]) -> str:
    inputs = [(parameter(name), found) for name, found, _ in cases if name.startswith("test_refused_by_name")]
    others = [(name, found, took) for name, found, took in cases if not name.startswith("test_refused_by_name")]
    kinds = Counter(name.split(":")[0] for name, _ in inputs)
    good = Counter(name.split(":")[0] for name, found in inputs if found == "as it should")
    lines = [
        "# Reliability",
        "",
        "`make reliability`: faults through the real launcher on two CPU ranks, and bad input. As it should: every rank ended in time and",
        "non-zero, the cause was named once, nothing half-written was left, and the same command then ended as an unbroken run does.",
        "",
        "| what | outcome | seconds |",
        "| --- | --- | ---: |",
        *(f"| {words(name)} | {found} | {took:.0f} |" for name, found, took in others),
        "",
        f"Bad input, one sentence each: {sum(good.values())} of {len(inputs)} cases as they should.",
        "",
        "| kind | cases | refused by name |",
        "| --- | ---: | ---: |",
        *(f"| {kind} | {count} | {good[kind]} |" for kind, count in kinds.items()),
    ]
    return "\n".join(lines) + "\n"


def parameter(name: str) -> str:
    return name.partition("[")[2].removesuffix("]")


def words(name: str) -> str:
    test = re.sub(r"^test_", "", name.partition("[")[0]).replace("_", " ")
    return f"{test}: {parameter(name)}" if "[" in name else test


if __name__ == "__main__":
    main()
