"""One rendering of an example, for whoever asks: its tokens, and which of them are learned.

Tokens are made as TRL's `SFTTrainer` makes them (`_prepare_dataset`); what it gets is ready for the
collator, so nothing is rendered twice or in two ways. What the assistant says is marked by the
template (`{% generation %}`), or where nobody marked it, found by difference: a turn's text is what
changes when the turn does.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import common_prefix_length

from loki_ds.data.layouts import Example
from loki_ds.data.messages import Message, NotUnderstood
from loki_ds.data.templates import ChatTemplate
from loki_ds.model.base import UNRENDERABLE

NOT_LEARNED = -100  # a label that the loss passes over


@dataclass(frozen=True)
class Rendered:
    """One example: token ids, and for each the id itself as its label where it is learned."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        return len(self.labels) - self.labels.count(NOT_LEARNED)


@dataclass(frozen=True)
class Cut:
    """What is cut off: examples longer than `length` lose their end (or their beginning); None for
    no cut.
    """

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
    """

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    only_assistant: bool = False
    only_completion: bool | None = None

    def render(self, example: Example) -> Rendered:
        """Raises NotUnderstood where the template refuses the conversation, or its marks fail."""
        if not example.is_chat:
            if self.only_assistant:
                raise NotUnderstood("is no chat, and training.assistant_only_loss learns what an assistant says")
            return self._texts(example)
        if self.template is None:
            raise NotUnderstood("is a conversation, and the tokenizer has no chat template")
        try:
            return self._chat(example, self.template)
        except NotUnderstood:
            raise
        except UNRENDERABLE as error:
            said = " ".join(str(error).split())[:200]
            raise NotUnderstood(f"is refused by the chat template: {said}") from None

    def _texts(self, example: Example) -> Rendered:
        eos, text = self.tokenizer.eos_token or "", example.text or ""
        text = text if text.endswith(eos) else text + eos
        if example.prompt is None:
            ids = self.tokenizer(text=text)["input_ids"]
            return Rendered(ids, list(ids))
        shown, ids = (self.tokenizer(text=part)["input_ids"] for part in (example.prompt, example.prompt + text))
        begins = common_prefix_length(shown, ids)
        return self._learned(ids, [i >= begins or self.only_completion is False for i in range(len(ids))])

    def _chat(self, example: Example, template: ChatTemplate) -> Rendered:
        if not self.only_assistant:
            ids = self._ids(template, example.messages, example)
            begins = self._begin_of_completion(example, template, ids)
            said = [i >= begins for i in range(len(ids))]
            if begins:
                self._leave_out(template.empty_thought, ids, said)
            return self._learned(ids, said)
        if has_generation_markers(template.text):
            encoded = template.encode(example.messages, example.tools, return_assistant_tokens_mask=True)
            ids, said = encoded["input_ids"], [bool(mask) for mask in encoded["assistant_masks"]]
        else:
            ids, said = self._by_difference(example, template)
        begins = self._begin_of_completion(example, template, ids)
        self._leave_out(template.empty_thought, ids, said)
        return self._learned(ids, [mask and i >= begins for i, mask in enumerate(said)])

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
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins, ends = zip(*encoded["offset_mapping"], strict=True)
        said = [False] * len(begins)
        for start, end in spans:
            first, last = bisect_right(ends, start), bisect_left(begins, end)  # tokens that lie in it, if only in part
            said[first:last] = [True] * (last - first)
        return encoded["input_ids"], said

    def _span(self, text: str, place: int, example: Example, template: ChatTemplate) -> tuple[int, int]:
        """Where in the text an assistant's turn stands, from its first character to the end of the
        turn.
        """
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

    @cached_property
    def _special(self) -> list[str]:
        """Special tokens, the longest first."""
        return sorted(self.tokenizer.get_added_vocab(), key=lambda token: -len(token))

    @staticmethod
    def _learned(ids: list[int], learned: list[bool]) -> Rendered:
        return Rendered(ids, [token if one else NOT_LEARNED for token, one in zip(ids, learned, strict=True)])
