"""One rendering of an example, for whoever asks: its tokens, and which of them are learned.

Tokens are made as TRL's `SFTTrainer` makes them (`_prepare_dataset`); what it gets is ready for the
collator, so nothing is rendered twice or in two ways. What the assistant says is marked by the
template (`{% generation %}`), or where nobody marked it, found by difference: a turn's text is what
changes when the turn does.
"""

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import common_prefix_length

from loki_ds.data.layouts import Example
from loki_ds.data.messages import Message, NotUnderstood, short, with_ids
from loki_ds.data.templates import THOUGHT, ChatTemplate
from loki_ds.model.base import UNRENDERABLE

NOT_LEARNED = -100  # a label that the loss passes over


@dataclass(frozen=True)
class Rendered:
    """One example: token ids, and for each the id itself as its label where it is learned."""

    input_ids: list[int]
    labels: list[int]
    lost: frozenset[str] = frozenset()  # what the template drops by design, in words

    @property
    def learned(self) -> int:
        return len(self.labels) - self.labels.count(NOT_LEARNED)


@dataclass(frozen=True)
class Cut:
    """Examples longer than `length` lose their end (or their beginning); None for no cut."""

    length: int | None
    keeps_end: bool = False

    def of(self, labels: list[int]) -> list[int]:
        if self.length is None:
            return labels
        return labels[-self.length :] if self.keeps_end else labels[: self.length]


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with the template that trains, and what is learned.

    template: None where there are no conversations. only_assistant: of a conversation only what the
    assistant says. only_completion: of a pair only the completion; None for what its kind implies.
    drops_thoughts: whether answers are learned without their thoughts.
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    only_assistant: bool = False
    only_completion: bool | None = None
    drops_thoughts: bool = False

    def render(self, example: Example) -> Rendered:
        """Raises NotUnderstood where the template refuses the conversation, or its marks fail."""
        if not example.is_chat:
            if self.only_assistant:
                raise NotUnderstood("is no chat, and training.assistant_only_loss learns what an assistant says")
            return self._texts(example)
        if self.template is None:
            raise NotUnderstood("is a conversation, and the tokenizer has no chat template")
        try:
            fitted = self._fitted(example, self.template)
            return replace(self._chat(fitted, self.template), lost=self._lost(fitted, self.template))
        except NotUnderstood:
            raise
        except UNRENDERABLE as error:
            said = " ".join(str(error).split())[:200]
            raise NotUnderstood(f"is refused by the chat template: {said}") from None

    def _fitted(self, example: Example, template: ChatTemplate) -> Example:
        """The conversation with ids if the template wants them, and thoughts where it puts them."""
        messages = with_ids(example.messages) if template.wants_ids else example.messages
        moves = template.places_thoughts and not template.keeps_thoughts
        if self.drops_thoughts or moves:
            messages = [_apart(message, keep=not self.drops_thoughts) for message in messages]
        return replace(example, messages=messages)

    def _lost(self, example: Example, template: ChatTemplate) -> frozenset[str]:
        """What the template drops of turns that are learned, as many do by design: thoughts before
        the last question, text beside calls.

        Raises:
            NotUnderstood: it drops what is asked for, an answer or its thought.
        """
        shown = _words(template.render(example.messages, example.tools))
        asked = max((i for i, message in enumerate(example.messages) if message["role"] == "user"), default=-1)
        lost = set()
        for place, message in enumerate(example.messages):
            if message["role"] != "assistant" or place in example.unlearned or place < example.learned_from:
                continue
            apart = _apart(message, keep=True)
            thought, answer = apart.get("reasoning_content", ""), apart["content"]
            if _words(answer) not in shown and "tool_calls" in message:
                lost.add("text beside calls")
            elif _words(answer) not in shown:
                raise NotUnderstood(
                    f"has an answer (turn {place + 1}) that the chat template does not show as it is: {short(answer)}"
                )
            if thought and _words(thought) not in shown:
                if place > asked:
                    raise NotUnderstood(
                        f"has a thought (turn {place + 1}) that the chat template drops: {short(_words(thought))}; "
                        "learn the answers alone by data.thoughts=drop, or give a template by "
                        "training.chat_template_path"
                    )
                lost.add("thoughts of earlier turns")
        return frozenset(lost)

    def _texts(self, example: Example) -> Rendered:
        eos, text = self.tokenizer.eos_token or "", example.text or ""
        text = text if text.endswith(eos) else text + eos
        if example.prompt is None:
            ids = self._once(text)
            return Rendered(ids, list(ids))
        shown, ids = (self._once(part) for part in (example.prompt, example.prompt + text))
        begins = common_prefix_length(shown, ids)
        return self._learned(ids, [i >= begins or self.only_completion is False for i in range(len(ids))])

    def _once(self, text: str) -> list[int]:
        """A text's tokens; what a text brings itself, and the tokenizer adds, stands there once."""
        ids: Any = self.tokenizer(text=text)["input_ids"]
        if ids[:2] == [self.tokenizer.bos_token_id] * 2:
            ids = ids[1:]
        return ids[:-1] if ids[-2:] == [self.tokenizer.eos_token_id] * 2 else ids

    def _chat(self, example: Example, template: ChatTemplate) -> Rendered:
        if not self.only_assistant:
            ids = self._ids(template, example.messages, example)
            said = [True] * len(ids)
        elif has_generation_markers(template.text):
            encoded = template.encode(example.messages, example.tools, return_assistant_tokens_mask=True)
            ids, said = encoded["input_ids"], [bool(mask) for mask in encoded["assistant_masks"]]
        else:
            ids, said = self._by_difference(example, template)
        begins = self._begin_of_completion(example, template, ids)
        said = [mask and i >= begins for i, mask in enumerate(said)]
        if self.only_assistant or begins:
            self._leave_out(template.empty_thought, ids, said)
        self._leave_marked(example, template, ids, said)
        return self._ended(ids, said) if example.answered else self._learned(ids, said)

    def _ended(self, ids: list[int], said: list[bool]) -> Rendered:
        """With the end of text behind a last answer that the template does not end: a model that
        never learns an end never stops (as TRL does where it adds one)."""
        if said[-1] and self.tokenizer.eos_token_id is not None and self.end_of(ids) is None:
            ids, said = [*ids, self.tokenizer.eos_token_id], [*said, True]
        return self._learned(ids, said)

    def end_of(self, learned: list[int]) -> str | None:
        """The special token that ends what is learned, but for whitespace; None where text does."""
        for token in reversed(learned):
            text = str(self.tokenizer.decode([token]))
            if text in self._special or text in self.tokenizer.all_special_tokens:
                return text
            if text.strip():
                return None
        return None

    def _leave_marked(self, example: Example, template: ChatTemplate, ids: list[int], said: list[bool]) -> None:
        """Take turns that a mark forbids to learn out of what is learned."""
        if not example.unlearned:
            return
        text = template.render(example.messages, example.tools)
        for place in sorted(example.unlearned):
            if example.messages[place]["role"] != "assistant":
                if not self.only_assistant:
                    raise NotUnderstood(
                        f"has a mark that turn {place + 1} is not to be learned; training.assistant_only_loss=true "
                        "learns what the assistant says alone"
                    )
                continue
            tokens, within = self._within(text, [self._span(text, place, example, template)])
            if tokens != ids:
                raise NotUnderstood(f"has a mark that turn {place + 1} is not to be learned, and it is not found there")
            said[:] = [learned and not left_out for learned, left_out in zip(said, within, strict=True)]

    def _leave_out(self, thought: str, ids: list[int], said: list[bool]) -> None:
        """An empty thought is left to the prompt, where it stands when the model is told not to
        think: to learn it would be to learn never to (ms-swift's `ignore_empty_think`).
        """
        for text in dict.fromkeys((thought, thought.strip())) if thought else ():
            tokens: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            begins = [i for i in range(len(ids)) if ids[i : i + len(tokens)] == tokens]
            for i in begins:
                said[i : i + len(tokens)] = [False] * len(tokens)
                while i and said[i - 1] and not str(self.tokenizer.decode([ids[i - 1]])).strip():
                    i -= 1  # GLM's begins on a line of its own
                    said[i] = False
            if begins:
                return

    def _begin_of_completion(self, example: Example, template: ChatTemplate, ids: list[int]) -> int:
        """The first token of a conversational pair's completion; 0 in other conversations."""
        if not example.learned_from or self.only_completion is False:
            return 0
        prompt = example.messages[: example.learned_from]
        return common_prefix_length(self._ids(template, prompt, example, add_generation_prompt=True), ids)

    def _ids(self, template: ChatTemplate, messages: list[Message], example: Example, **settings: Any) -> list[int]:
        return template.encode(messages, example.tools, **settings)["input_ids"]

    def _by_difference(self, example: Example, template: ChatTemplate) -> tuple[list[int], list[bool]]:
        """Tokens, and for each whether the assistant says it."""
        text = template.render(example.messages, example.tools)
        spans = [
            self._span(text, place, example, template)
            for place, message in enumerate(example.messages)
            if message["role"] == "assistant"
        ]
        return self._within(text, spans)

    def _within(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """A text's tokens, and for each whether it lies in one of the spans, if only in part."""
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins, ends = zip(*encoded["offset_mapping"], strict=True)
        inside = [False] * len(begins)
        for start, end in spans:
            first, last = bisect_right(ends, start), bisect_left(begins, end)
            inside[first:last] = [True] * (last - first)
        return encoded["input_ids"], inside

    def _span(self, text: str, place: int, example: Example, template: ChatTemplate) -> tuple[int, int]:
        """Where an assistant's turn stands in the text, from its first character to its end."""
        span = template.span(text, place, example.messages, example.tools)
        if span is None:
            raise NotUnderstood(
                f"has an assistant's turn (the {place + 1}th) on which more of the text depends than itself, so the "
                "chat template needs marks around what the assistant says ({% generation %}); give one by "
                "training.chat_template_path"
            )
        return span[0], self._end_of_turn(text, span[1])

    def _end_of_turn(self, text: str, end: int) -> int:
        """Past the token that ends a turn (`<|eot_id|>`, `</s>`), the line's end behind it, and the
        end of the whole text if the template puts one there.
        """
        end += len(next((token for token in self._special if text.startswith(token, end)), ""))
        end += text.startswith("\n", end)
        return len(text) if text[end:] == self.tokenizer.eos_token else end

    def brought_by(self, example: Example) -> set[str]:
        """Special tokens in what users, tools and system say, which read as the template's own."""
        said = (message["content"] for message in example.messages if message["role"] != "assistant")
        return {token for text in said for token in self._in_text.findall(text)}

    @cached_property
    def _in_text(self) -> re.Pattern[str]:
        words = [re.escape(token) for token in self._special if token.strip()]
        return re.compile("|".join(words) if words else r"(?!)")

    @cached_property
    def _special(self) -> list[str]:
        """Special tokens, the longest first."""
        return sorted(self.tokenizer.get_added_vocab(), key=lambda token: -len(token))

    @staticmethod
    def _learned(ids: list[int], learned: list[bool]) -> Rendered:
        return Rendered(ids, [token if one else NOT_LEARNED for token, one in zip(ids, learned, strict=True)])


def _apart(message: Message, keep: bool) -> Message:
    """An answer with the thought of its text as `reasoning_content`, or without any thought."""
    if message["role"] != "assistant":
        return message
    match = THOUGHT.fullmatch(message["content"])
    apart = {**message, "content": match["answer"], "reasoning_content": match["thought"]} if match else {**message}
    if not keep:
        apart.pop("reasoning_content", None)
    return apart


def _words(text: str) -> str:
    """A text without the kind of its whitespace, which templates trim."""
    return " ".join(text.split())
