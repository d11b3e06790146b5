"""Is a tool call judged as the leaderboard judges it?

Every document of `bfcl-eval`, its own answers and systematic changes of them, through its judge and
through ours.

    python -m venv /tmp/bfcl && /tmp/bfcl/bin/pip install --no-deps bfcl-eval tenacity filelock
    python eval/benchmarks/bfcl.py /tmp/bfcl/bin/python     # a minute; eval/reports/bfcl.*
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from reporting import ROOT, keep, listed, paragraph, table, where, write

from loki_ds.judges.tool_calls import judge

AST = (
    "simple_python multiple parallel parallel_multiple live_simple live_multiple live_parallel live_parallel_multiple"
).split()
OTHER = ["irrelevance", "live_irrelevance", "live_relevance"]
Answer = list[tuple[str, dict[str, Any]]]


class Source(str):
    """Text that stands in a call as it is."""


class Case(NamedTuple):
    """One text to be judged. kind: how it came about; calls: None for what is no Python."""

    category: str
    kind: str
    functions: list
    expected: list
    text: str


def main() -> None:
    reference = sys.argv[1]
    cases = list(all_cases(Path(said_by(reference, "import bfcl_eval; print(bfcl_eval.__path__[0])")) / "data"))
    asked = "\n".join(json.dumps([case.category, case.functions, case.expected, case.text]) for case in cases)
    done = subprocess.run(
        [reference, str(ROOT / "eval/benchmarks/bfcl_reference.py")],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    started = time.perf_counter()
    ours = [judge(case.text, case.expected, case.functions, case.category) for case in cases]
    seconds = time.perf_counter() - started
    version = said_by(reference, "from importlib.metadata import version; print(version('bfcl-eval'))")
    report(cases, ours, theirs, version, seconds)


def said_by(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def report(cases: list[Case], ours: list[bool], theirs: list[bool | None], version: str, seconds: float) -> None:
    python = [(case, a, bool(b)) for case, a, b in zip(cases, ours, theirs, strict=True) if case.kind not in NOTATIONS]
    other = [(case, a, b) for case, a, b in zip(cases, ours, theirs, strict=True) if case.kind in NOTATIONS]
    rows = []
    for category in (*AST, *OTHER):
        mine = [(a, b) for case, a, b in python if case.category == category]
        rows.append(
            (category, len(mine), sum(b for _, b in mine), f"{100 * sum(a == b for a, b in mine) / len(mine):.3f}%")
        )
    differing = Counter(case.kind for case, a, b in python if a != b)
    aborted = sum(b is None for b in theirs)
    accepted: list[tuple[str, int, str, str]] = []
    for kind in NOTATIONS:
        mine = [(a, bool(b)) for case, a, b in other if case.kind == kind and case.category in AST]
        accepted.append((kind, len(mine), *(f"{100 * sum(x) / len(mine):.1f}%" for x in zip(*mine, strict=True))))  # type: ignore[arg-type]
    kinds = len({case.kind for case, _, _ in python})
    keep(
        "bfcl",
        {"where": where(), "version": version, "categories": rows, "differing": dict(differing), "notations": accepted},
    )
    write(
        "bfcl",
        "Judged as the leaderboard judges",
        paragraph(
            f"`python eval/benchmarks/bfcl.py`: {listed(where())}; bfcl-eval {version}, Python prompting. "
            f"{len(python):,} texts: every document's own answers and {kinds} kinds of change. Ours took "
            f"{1e6 * seconds / len(cases):.0f} microseconds a text."
        ),
        table(["category", "texts", "right by bfcl-eval", "agreement"], rows),
        paragraph(
            "Kinds that differ: " + (", ".join(f"{kind} ({n})" for kind, n in differing.most_common()) or "none") + ". "
            f"{aborted} texts end bfcl-eval with a traceback; ours calls those wrong."
        ),
        "## Other notations",
        paragraph(
            "The leaderboard reads these with a handler of each model, and as Python they are no call. Ours reads all "
            "of them. The first answer of every document, in each notation: right by ours, and by bfcl-eval's Python "
            "prompting. In irrelevance and relevance such a text counts as a call by ours and as none by that."
        ),
        table(["notation", "texts", "right by ours", "right by bfcl-eval as Python"], accepted),
    )


# --- the texts ------------------------------------------------------------------------------------

NOTATIONS = ("after a thought", "JSON", "JSON in a fence", "Hermes tags", "Llama's objects")


def all_cases(data: Path) -> Iterator[Case]:
    for category in (*AST, *OTHER):
        documents = rows(data / f"BFCL_v4_{category}.json")
        answers: dict[str, list] = {}
        if category in AST:
            answers = {
                row["id"]: row["ground_truth"] for row in rows(data / f"possible_answer/BFCL_v4_{category}.json")
            }
        for document in documents:
            functions, expected = document["function"], answers.get(document["id"], [])
            answer = first_answer(functions, expected) or [(functions[0]["name"] if functions else "f", {"x": 1})]
            for kind, text in texts(answer, functions, expected):
                yield Case(category, kind, functions, expected, text)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def first_answer(functions: list, expected: list, last: bool = False, optional: bool = True) -> Answer:
    """The calls with each argument's first (or last) allowed value."""
    declared = {function["name"]: function["parameters"]["properties"] for function in functions}
    answer: Answer = []
    for one in expected:
        ((name, allowed),) = one.items()
        given = {}
        for argument, values in allowed.items():
            some = [value for value in values if value != ""]
            if some and (optional or "" not in values):
                value = plain(some[-1 if last else 0])
                as_tuple = declared[name].get(argument, {}).get("type") == "tuple"
                given[argument] = tuple(value) if as_tuple and isinstance(value, list) else value
        answer.append((name, given))
    return answer


def plain(value: Any) -> Any:
    """A dictionary's keys hold lists of allowed values: the first of each."""
    if isinstance(value, dict):
        return {
            key: next((one for one in some if one != ""), "") if isinstance(some, list) else some
            for key, some in value.items()
        }
    return [plain(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value


def source(value: Any) -> str:
    if isinstance(value, Source):
        return str(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(map(source, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {source(one)}" for key, one in value.items()) + "}"
    return repr(value)


def written(answer: Answer) -> str:
    calls = (f"{name}({', '.join(f'{key}={source(value)}' for key, value in given.items())})" for name, given in answer)
    return f"[{', '.join(calls)}]"


def texts(answer: Answer, functions: list, expected: list) -> Iterator[tuple[str, str]]:
    text = written(answer)
    yield "first values", text
    if expected:
        yield "last values", written(first_answer(functions, expected, last=True))
        yield "required alone", written(first_answer(functions, expected, optional=False))
    yield from of_the_text(text)
    yield from of_the_calls(answer)
    for place, (_, given) in enumerate(answer):
        for key, value in given.items():
            for kind, changed in of_a_value(value):
                yield (
                    kind,
                    written(
                        [
                            (name, {**args, key: changed} if i == place else args)
                            for i, (name, args) in enumerate(answer)
                        ]
                    ),
                )
    yield from in_other_notations(answer, text)


def of_the_text(text: str) -> Iterator[tuple[str, str]]:
    inner = text[1:-1]
    yield from {
        "no brackets": inner,
        "not closed": text[:-1],
        "not opened": text[1:],
        "backticks": f"`{text}`",
        "fence": f"```python\n{text}\n```",
        "white space": f" \n{text}\n ",
        "tab": f"\t{text}",
        "carriage return": f"{text}\r\n",
        "tuple of calls": f"({inner},)",
        "list in a list": f"[{text}]",
        "assigned": f"result = {text}",
        "words before": f"Here is the call: {text}",
        "words after": f"{text} is the call.",
        "on lines of their own": "\n".join(re.split(r"(?<=\)), (?=[a-zA-Z_])", inner)),
        "comment": f"{text} # done",
        "semicolon": inner + ";",
        "nothing": "",
        "no call": "[]",
        "prose": "None of these functions can be used.",
        "print": f"print({inner})",
        "awaited": f"await {inner}",
        "a name": "[none]",
        "a set": "f(a={1})",
        "positional": "f(5)",
        "starred": "[f(*x)]",
        "keywords of a dictionary": "[f(**{'a': 1})]",
        "arithmetic": "[f(a=2*3)]",
        "arithmetic of names": "[f(a=x+1)]",
    }.items()


def of_the_calls(answer: Answer) -> Iterator[tuple[str, str]]:
    (name, given), others = answer[0], answer[1:]
    yield "other order", written(answer[::-1])
    yield "a call twice", written([*answer, answer[0]])
    yield "a call less", written(others)
    yield "arguments in another order", written([(one, dict(reversed(args.items()))) for one, args in answer])
    yield "another function", written([(f"{name}_x", given), *others])
    yield "dots as underscores", written([(one.replace(".", "_"), args) for one, args in answer])
    yield "an argument more", written([(name, {**given, "zz": 1}), *others])
    for key in given:
        yield "an argument less", written([(name, {one: value for one, value in given.items() if one != key}), *others])
    if given:
        key, value = next(iter(given.items()))
        yield "an argument by position", written(answer).replace(f"{key}=", "", 1)
        yield "an argument twice", written(answer).replace(f"{key}=", f"{key}={source(value)}, {key}=", 1)


def of_a_value(value: Any) -> Iterator[tuple[str, Any]]:
    yield from (
        ("None", None),
        ("empty text", ""),
        ("a comma", ","),
        ("an empty list", []),
        ("an empty dictionary", {}),
    )
    yield from (("an ellipsis", Source("...")), ("null", Source("null")), ("a lambda", Source("lambda: 1")))
    if isinstance(value, bool):
        yield from (
            ("another bool", not value),
            ("bool as int", int(value)),
            ("bool as JSON", Source(str(value).lower())),
            ("bool as text", str(value)),
        )
    elif isinstance(value, int):
        yield from (
            ("another int", value + 1),
            ("int as float", float(value)),
            ("int as text", str(value)),
            ("True for it", True),
        )
        yield from (("int as product", Source(f"{value}*1")), ("int as sum", Source(f"{value - 1}+1")))
        yield from (
            ("a plus", Source(f"+{abs(value)}")),
            ("two minuses", Source(f"--{abs(value)}")),
            ("int as call", Source(f"int({value})")),
        )
    elif isinstance(value, float):
        yield from (
            ("another float", value + 0.5),
            ("float as int", int(value)),
            ("float as text", str(value)),
            ("float as quotient", Source(f"{value}/1")),
        )
    elif isinstance(value, str):
        yield from (
            ("upper case", value.upper()),
            ("lower case", value.lower()),
            ("a full stop", value + "."),
            ("an exclamation", value + "!"),
        )
        yield from (
            ("no spaces", value.replace(" ", "")),
            ("a letter more", value + "x"),
            ("a letter less", value[:-1]),
            ("text in a list", [value]),
        )
        yield from (
            ("as it stands", Source(value)),
            ("a bare name", Source(re.sub(r"\W", "_", value) or "x")),
            ("bytes", Source("b" + ascii(value))),
        )
        yield from (
            ("f-string", Source("f" + repr(value))),
            ("joined", Source(f"{value[:1]!r} + {value[1:]!r}")),
            ("an attribute", Source("kind.x")),
            ("a subscript", Source(f"d[{value!r}]")),
        )
        yield "a call as value", Source(f"date({value!r})")
    elif isinstance(value, list | tuple):
        made = list(value)
        yield from (
            ("list and tuple changed", tuple(made) if isinstance(value, list) else made),
            ("list reversed", made[::-1]),
        )
        yield from (("list shorter", made[:-1]), ("list longer", [*made, *made[-1:]]), ("list as text", str(made)))
        yield from (
            ("ints as floats", [float(one) if type(one) is int else one for one in made]),
            ("floats as ints", [int(one) if type(one) is float else one for one in made]),
        )
        yield from (
            ("texts in upper case", [one.upper() if isinstance(one, str) else one for one in made]),
            ("texts with a stop", [one + "." if isinstance(one, str) else one for one in made]),
        )
    elif isinstance(value, dict):
        yield from (
            ("a key more", {**value, "zz": 1}),
            ("dictionary as text", json.dumps(value)),
            ("keys in another order", dict(reversed(value.items()))),
        )
        for key, inner in value.items():
            yield "a key less", {one: other for one, other in value.items() if one != key}
            for kind, changed in of_a_value(inner):
                yield f"in a dictionary: {kind}", {**value, key: changed}


def in_other_notations(answer: Answer, text: str) -> Iterator[tuple[str, str]]:
    calls = [{"name": name, "arguments": given} for name, given in answer]
    llama = [{"name": name, "parameters": given} for name, given in answer]
    yield from {
        "after a thought": f"<think>\nWhich one?\n</think>\n\n{text}",
        "JSON": json.dumps(calls),
        "JSON in a fence": f"```json\n{json.dumps(calls)}\n```",
        "Hermes tags": "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls),
        "Llama's objects": "<|python_tag|>" + "; ".join(map(json.dumps, llama)),
    }.items()


if __name__ == "__main__":
    main()
