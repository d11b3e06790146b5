"""The small ability files of `eval/tasks/real/data/`: questions with four choices, from WordNet and
from two packages. Run once; the files are kept in the project, with `LICENSES.md`.

    pip download --no-deps countryinfo==1.0.1 mendeleev==1.3.0      # unpacked into FOLDER
    apt install wordnet-base                                        # /usr/share/wordnet
    python eval/real/make_abilities.py FOLDER
"""

import json
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WORDNET = Path("/usr/share/wordnet")
DATA = Path(__file__).parents[1] / "tasks/real/data"
MANY = 300  # words
CHOICES = 4
SEEN_OFTEN = 8  # times in WordNet's tagged texts


class Noun(NamedTuple):
    """A word's first sense: what it is, and what kind of thing."""

    word: str
    definition: str
    kind: str


def main() -> None:
    packages, generator = Path(sys.argv[1]), random.Random(0)
    nouns = list(common_nouns())
    chosen = generator.sample(nouns, MANY)
    keep("definitions", [('The word "{}" means:', noun.word, noun.definition) for noun in chosen], generator)
    keep("hypernyms", [("{} is a kind of", article(noun.word), noun.kind) for noun in chosen], generator)
    keep("capitals", [("The capital of {} is", country, capital) for country, capital in capitals(packages)], generator)
    keep("elements", [("The chemical symbol of {} is", name, symbol) for name, symbol in elements(packages)], generator)


def keep(name: str, facts: list[tuple[str, str, str]], generator: random.Random) -> None:
    """A file of questions: the right answer among those of other questions."""
    answers = sorted({answer for _, _, answer in facts})
    DATA.mkdir(parents=True, exist_ok=True)
    with (DATA / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for form, about, answer in facts:
            others = generator.sample([one for one in answers if one != answer], CHOICES - 1)
            choices = generator.sample([answer, *others], CHOICES)
            row = {"question": form.format(about), "choices": choices, "answer": choices.index(answer)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def common_nouns() -> Iterator[Noun]:
    """Nouns of one word that WordNet's texts use often in their first sense."""
    synsets = dict(read_synsets())
    for line in lines("index.noun"):
        word, _, count, pointers, *rest = line.split()
        tagged, first = int(rest[int(pointers) + 1]), rest[int(pointers) + 2]
        definition, words, hypernyms = synsets[first]
        known = [synsets[one][1][0] for one in hypernyms]
        plain = word.isalpha() and len(word) > 3 and words[0].lower() == word and int(count) > 0
        if plain and tagged and times_seen(word) >= SEEN_OFTEN and known and known[0].isalpha() and known[0] != word:
            yield Noun(word, definition, known[0])


def times_seen(word: str) -> int:
    return COUNTS.get(word, 0)


def lines(file: str) -> Iterator[str]:
    for line in (WORDNET / file).read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # its license
            yield line


def read_synsets() -> Iterator[tuple[str, tuple[str, list[str], list[str]]]]:
    """By offset: the definition, the words, the offsets of what it is a kind of."""
    for line in lines("data.noun"):
        fields, _, gloss = line.partition(" | ")
        offset, _, _, count, *rest = fields.split()
        words = rest[: 2 * int(count, 16) : 2]
        pointers = rest[2 * int(count, 16) + 1 :]
        kinds = [pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] == "@"]
        yield offset, (gloss.split(";")[0].strip(), words, kinds)


def counts() -> dict[str, int]:
    """How often the first sense of a noun was seen (`cntlist.rev`: sense key, number, times)."""
    found: dict[str, int] = {}
    for line in (WORDNET / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, number, times = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:") and number == "1":
            found[word] = int(times)
    return found


def article(word: str) -> str:
    return f"{'An' if word[0] in 'aeiou' else 'A'} {word}"


def capitals(packages: Path) -> list[tuple[str, str]]:
    """Countries and their capitals (countryinfo), where one is not named after the other."""
    files = sorted(packages.rglob("countryinfo/data/*.json"))
    read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    pairs = [(one.get("name"), one.get("capital")) for one in read]
    named = {(name, city) for name, city in pairs if isinstance(name, str) and isinstance(city, str) and name and city}
    return sorted((name, city) for name, city in named if name not in city and city not in name)


def elements(packages: Path) -> list[tuple[str, str]]:
    """Elements and their symbols (mendeleev)."""
    with sqlite3.connect(next(packages.rglob("elements.db"))) as database:
        rows = database.execute("select name, symbol from elements order by atomic_number").fetchall()
    return [(str(name).lower(), str(symbol)) for name, symbol in rows]


COUNTS = counts()

if __name__ == "__main__":
    main()
