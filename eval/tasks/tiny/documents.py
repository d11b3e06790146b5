"""Where the tiny tasks' documents are: the JSON Lines files beside the tiny recipes, found from
this file's own place.
"""

from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

DATA = Path(__file__).parents[3] / "recipes" / "tiny" / "data"


def read(file: str, **_: Any) -> DatasetDict:
    return DatasetDict(test=Dataset.from_json(str(DATA / file)))


facts = partial(read, "abilities/facts.jsonl")
arithmetic = partial(read, "abilities/arithmetic.jsonl")
copying = partial(read, "abilities/copying.jsonl")
reversing = partial(read, "abilities/reversing.jsonl")
sequences = partial(read, "abilities/sequences.jsonl")
picking = partial(read, "abilities/picking.jsonl")
toolcalls = partial(read, "toolcalls/heldout.jsonl")
labelling = partial(read, "labelling/heldout.jsonl")
