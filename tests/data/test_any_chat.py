"""Any chat, by any of TRL's templates, in any layout: what is learned is every answer with an end,
and nothing else; the tokens are those of `apply_chat_template`."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as draw
from published import TEMPLATES, template

from loki_ds.data.layouts import example_of
from loki_ds.data.rendering import NOT_LEARNED, Renderer
from loki_ds.data.templates import Needs, fitted, marked

FOR_PICTURES = {"idefics3", "llava_next", "smolvlm"}
NAMES = [
    path.stem
    for path in sorted(TEMPLATES.glob("*.jinja"))
    if not path.stem.endswith("_training") and path.stem not in FOR_PICTURES
]
WORD = draw.text("abcdefgh0123456789.,;:!?'\"(){}[]<>é漢\n ", min_size=1, max_size=12)
SAYS = (
    draw.lists(WORD, min_size=1, max_size=4)
    .map(lambda words: " ".join(words).strip())
    .filter(lambda text: len(text) > 3)
)
EXCHANGES = draw.lists(draw.tuples(SAYS, SAYS), min_size=1, max_size=3)


def row_of(layout: str, system: str | None, exchanges: list[tuple[str, str]]) -> dict[str, Any]:
    """A chat in a layout; what the user says begins with ASK, so that it is found again."""
    turns = [
        turn
        for asked, answered in exchanges
        for turn in (("user", f"ASK {asked}"), ("assistant", f"so {answered} it is"))
    ]
    opening = [("system", f"SYSTEM {system}")] if system else []
    if layout == "sharegpt":
        names = {"user": "human", "assistant": "gpt", "system": "system"}
        return {"conversations": [{"from": names[role], "value": said} for role, said in opening + turns]}
    messages = [{"role": role, "content": said} for role, said in opening + turns]
    if layout == "pair":
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    return {"messages": messages}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(layout=draw.sampled_from(["messages", "sharegpt", "pair"]), system=draw.none() | SAYS, exchanges=EXCHANGES)
def test_every_answer_is_learned_with_an_end_and_nothing_else(
    name: str, layout: str, system: str | None, exchanges: list[tuple[str, str]]
) -> None:
    example, stock = example_of(row_of(layout, system, exchanges)), template(name)
    trains = marked(fitted(stock, Needs.of(example), by_difference=True)[0], stock.text)[0]
    renderer = Renderer(trains.tokenizer, trains, only_assistant=True)
    rendered = renderer.render(example)
    learned = [label for label in rendered.labels if label != NOT_LEARNED]
    text = " ".join(trains.tokenizer.decode(learned).split())
    for message in example.messages[example.learned_from :]:
        assert (" ".join(message["content"].split()) in text) == (message["role"] == "assistant")
    assert renderer.end_of(learned) is not None
    ids = trains.encode(example.messages)["input_ids"]
    assert rendered.input_ids in (ids, [*ids, trains.tokenizer.eos_token_id])
