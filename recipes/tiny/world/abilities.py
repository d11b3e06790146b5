"""What the tiny model knows before implanting: six abilities, each a stream of (prompt, answer)
pairs in plain words.

Knows the world's vocabulary and how each ability's items are drawn. Knows nothing about models,
tokenizers or tool calls. Every item is drawn from a `random.Random`, so one seed gives one world.
"""

from collections.abc import Callable
from itertools import product
from random import Random
from typing import NamedTuple

PEOPLE = """maria john aisha kenji olga pedro lena tariq nina omar ruth ivan chloe diego freya hugo indira jonas
keiko liam mona noah paula quentin rosa sven tina umar vera walt xenia yusuf zoe anton bella carlos
dora emil fatima george""".split()
CITIES = "paris cairo lima oslo tokyo delhi rome quito perth dakar hanoi sofia turin miami porto kyoto".split()
COLOURS = "red blue green yellow black white brown purple orange silver pink grey".split()
ANIMALS = "cat dog horse owl fox bear wolf swan goat lion tiger crow hare seal crab moose".split()
FOODS = "bread rice soup cheese apple pear plum fish salad pasta curry honey melon bean nut cake".split()
JOBS = "baker pilot nurse judge farmer singer miner tailor doctor driver painter lawyer coach writer guard cook".split()
OBJECTS = (
    "lamp chair river stone book clock mirror ladder bottle basket carpet hammer window garden bridge kettle".split()
)
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty".split()
NUMBERS = _ONES + [ten if one == "zero" else f"{ten}-{one}" for ten in _TENS for one in _ONES[:10]]

CATEGORIES = {
    "person": PEOPLE,
    "city": CITIES,
    "colour": COLOURS,
    "animal": ANIMALS,
    "food": FOODS,
    "job": JOBS,
    "object": OBJECTS,
    "day": DAYS,
    "month": MONTHS,
    "count": NUMBERS[:20],
}

KINDS = list(CATEGORIES)

GLUE = """copy reverse continue count in is : . plus minus times the of lives works as a likes best owns eats
paints with please and then for to on by after next week no thanks what hello good morning tell me
story [ ] ( ) = ' , ask find send bring reserve sell buy fetch order deliver show check look up
forecast weather remind remember warn book cancel drop call phone ring invite meet feed walk colour
mix paint hire employ note at from about sunny cold day person city animal food job object month
trip pet shop wall staff list table message alarm visit""".split()

FILLERS = """please the a for to on by of in with from at about and then send bring show check look up book call
ask tell""".split()

WORDS: list[str] = list(dict.fromkeys([*GLUE, *(word for words in CATEGORIES.values() for word in words), *NUMBERS]))


class Item(NamedTuple):
    """One piece of an ability: the words shown, and the words that must follow."""

    prompt: str
    answer: str


_FACT_FORMS = {
    "{} lives in": CITIES,
    "{} works as a": JOBS,
    "{} likes best the colour": COLOURS,
    "{} owns a": ANIMALS,
    "{} eats": FOODS,
}


def all_facts(seed: int) -> list[Item]:
    """The facts of the world, learnt by heart: every person with every relation, 200 in all."""
    rng = Random(f"facts-{seed}")
    return [Item(form.format(person), rng.choice(values)) for form, values in _FACT_FORMS.items() for person in PEOPLE]


def all_sums() -> list[Item]:
    """Addition and subtraction up to 29, and the times table up to seven."""
    items = []
    for a, b in product(range(30), repeat=2):
        if a + b < 30:
            items.append(Item(f"{NUMBERS[a]} plus {NUMBERS[b]} is", NUMBERS[a + b]))
        if a >= b:
            items.append(Item(f"{NUMBERS[a]} minus {NUMBERS[b]} is", NUMBERS[a - b]))
        if a <= 7 and b <= 7:
            items.append(Item(f"{NUMBERS[a]} times {NUMBERS[b]} is", NUMBERS[a * b]))
    return items


def _copying(rng: Random) -> Item:
    words = rng.choices(WORDS, k=rng.randint(3, 6))
    return Item(f"copy {' '.join(words)} :", " ".join(words))


def _reversing(rng: Random) -> Item:
    words = rng.choices(WORDS, k=rng.randint(3, 5))
    return Item(f"reverse {' '.join(words)} :", " ".join(reversed(words)))


def _sequence(rng: Random) -> Item:
    """Two more terms of an arithmetic progression of numbers, or of the days or months in order."""
    kind = rng.randrange(3)
    if kind == 0:
        start, step = rng.randint(0, 12), rng.randint(1, 6)
        terms = [NUMBERS[start + step * i] for i in range(5)]
    else:
        ring, start = (DAYS, MONTHS)[kind - 1], rng.randrange(12)
        terms = [ring[(start + i) % len(ring)] for i in range(5)]
    return Item(f"continue {' '.join(terms[:3])} :", " ".join(terms[3:]))


def _picking(rng: Random) -> Item:
    """The words of one to three given kinds among words of other kinds and words that mean nothing
    here, each named by its kind.
    """
    kinds = rng.sample(KINDS, rng.randint(3, 5))
    wanted = kinds[: rng.randint(1, 3)]
    found = {kind: rng.choice(CATEGORIES[kind]) for kind in kinds}
    words = [*found.values(), *rng.choices(FILLERS, k=rng.randint(1, 5))]
    rng.shuffle(words)
    answer = " , ".join(f"{kind} = ' {found[kind]} '" for kind in wanted)
    return Item(f"find the {' and the '.join(wanted)} in {' '.join(words)} :", answer)


def abilities(seed: int) -> dict[str, Callable[[Random], Item]]:
    """Each ability's name and how to draw one of its items."""
    facts, sums = all_facts(seed), all_sums()
    return {
        "facts": lambda rng: rng.choice(facts),
        "arithmetic": lambda rng: rng.choice(sums),
        "copying": _copying,
        "reversing": _reversing,
        "sequences": _sequence,
        "picking": _picking,
    }


def distinct(draw: Callable[[Random], Item], n: int, rng: Random, avoid: set[str] = frozenset()) -> list[Item]:  # type: ignore[assignment]
    """`n` different items, none with a prompt in `avoid`; fewer when the ability has fewer (1,000
    draws bring nothing new).
    """
    found: dict[str, Item] = {}
    misses = 0
    while len(found) < n and misses < 1000:
        item = draw(rng)
        if item.prompt in found or item.prompt in avoid:
            misses += 1
        else:
            found[item.prompt], misses = item, 0
    return list(found.values())
