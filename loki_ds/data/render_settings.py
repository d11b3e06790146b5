"""How a recipe's examples are rendered: the keys of `training:` that say so, the tokenizer, and the
template with a place for all that the examples need.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig
from trl.chat_template_utils import has_generation_markers

from loki_ds.data.rendering import Cut, Renderer
from loki_ds.data.templates import Needs, fitted, marked, own_template, unmarked
from loki_ds.recipe.training_keys import DEFAULTS, RENDERING
from loki_ds.refusal import Refusal


def setting(training: dict[str, Any], key: str) -> Any:
    """The recipe's value of a key of `training:`, or what TRL takes where it says nothing."""
    return training.get(key, DEFAULTS.get(key, getattr(SFTConfig, key)))


@dataclass(frozen=True)
class LossSettings:
    """Keys of `training:`, as TRL means them, on how examples are rendered and what is learned."""

    only_assistant: bool
    only_completion: bool | None
    template: str | None
    eos_token: str | None
    pad_token: str | None
    cut: Cut

    @classmethod
    def of(cls, training: dict[str, Any]) -> "LossSettings":
        """Raises a Refusal for a truncation that TRL does not know."""
        only_assistant, only_completion, *named = (setting(training, key) for key in RENDERING)
        template, eos_token, pad_token = named
        truncation = setting(training, "truncation_mode")
        whole = setting(training, "packing") and setting(training, "packing_strategy") in ("wrapped", "bfd_split")
        cut = Cut(None if whole else setting(training, "max_length"), truncation == "keep_end")
        return cls(bool(only_assistant), only_completion, template, eos_token, pad_token, cut)


@dataclass(frozen=True)
class Rendering:
    """All that turns a row into tokens and labels; notes: what was decided, in sentences.

    needed: what the examples ask of a template, and whether there are conversations.
    """

    needed: tuple[Needs, bool]
    loss: LossSettings
    renderer: Renderer
    notes: list[str]
    moved_by_template: list[str]  # what the template has no place for, and where it is written
    base_template: str | None  # the tokenizer's own, where it can stay as it is
    marks_are_trls: bool = False

    @property
    def template(self) -> str | None:
        """The text of the template that trains."""
        return self.renderer.template.text if self.renderer.template else None

    @property
    def exported_template(self) -> str | None:
        """The text that leaves with the model, where it is not the base's own; without marks that
        neither the family nor the recipe made.
        """
        text = unmarked(self.template) if self.template and self.marks_are_trls else self.template
        return text if text != self.base_template else None


def make_rendering(
    needed: tuple[Needs, bool],
    training: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    model: Path | str,
    drops_thoughts: bool = False,
) -> Rendering:
    """Choose the template.

    The rendering has a tokenizer of its own, whose template it becomes: whoever saves that
    tokenizer saves it too.

    needed: what the examples ask of the template, and whether there are conversations
        (`dataset.needs_of`).
    drops_thoughts: whether answers are learned without their thoughts.

    Raises:
        Refusal: there are conversations and no template that shows them, or a token that `training`
            names is none of the tokenizer's.
    """
    loss, notes, tokenizer = LossSettings.of(training), [], copy.deepcopy(tokenizer)
    moved: list[str] = []
    for key in ("eos_token", "pad_token"):
        if (token := getattr(loss, key)) is not None:
            if token not in tokenizer.get_vocab():
                raise Refusal(f"training.{key} is {token!r}, which is no token of the tokenizer of {model}")
            if key == "eos_token" and token != tokenizer.eos_token:
                own = tokenizer.eos_token
                raise Refusal(
                    f"training.eos_token is {token!r}, allowed is the base's own ({own}): another would train and not "
                    "leave with the model; give the base that token in its tokenizer_config.json, and the id in its "
                    "generation_config.json"
                )
            setattr(tokenizer, key, token)
    needs, chats = needed
    base, template = (own_template(tokenizer, path, str(model), needs.tools) for path in (None, loss.template))
    own_marks = template is not None and has_generation_markers(template.text)
    named = list(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else []
    if named and chats:
        notes.append(f"of the templates named {', '.join(named)} the one taken for these rows trains, and alone leaves")
    if chats and template is None:
        raise Refusal(
            f"{model}: the tokenizer has no chat template, and data.train holds chats; use a chat model, plain text, "
            "or training.chat_template_path"
        )
    if template is not None and chats:
        if template.complaint is not None:
            raise Refusal(
                f"{loss.template or model}: the chat template shows no turns of text: {template.complaint}; give one "
                "that does by training.chat_template_path"
            )
        stock = template.text
        by_difference = loss.only_assistant and not has_generation_markers(marked(template, stock)[0].text)
        template, moved = fitted(template, needs, by_difference)
        if loss.only_assistant:
            template, how = marked(template, stock)
            notes.append(f"what the assistant says is marked by {how}")
            if template.empty_thought:
                notes.append(
                    "an answer without reasoning_content is learned after an empty thought, not the thought itself; "
                    "ask both models so (retention.chat_template_args={enable_thinking: false})"
                )
        notes += [f"the chat template has no place for it, so {line}" for line in moved]
        tokenizer.chat_template = template.text
    renderer = Renderer(tokenizer, template, loss.only_assistant, loss.only_completion, drops_thoughts)
    stays = base.text if base and not (named and chats) else None
    return Rendering(needed, loss, renderer, notes, moved, stays, not own_marks)
