"""The recipe's section `implant`: how the selected rows, or what they are compared with, train."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from loki_ds.recipe.modes import MODES, Mode
from loki_ds.recipe.shipped import FileName
from loki_ds.recipe.strict import Section

Share = Annotated[float, Field(ge=0, lt=1)]
Kind = Literal["far_swap", "near_swap", "drop", "bare", "foreign"]  # of a counter-example
WRITTEN_BY_BASE = ("base", "boundary")  # among the prompts that are rehearsed


class LowRankSection(Section):
    """LoKI*: the rows' delta is `alpha/rank A B`, with A zero at the start."""

    rank: Annotated[int, Field(gt=0)] = 16
    """Rank of the delta of each layer's selected rows."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scale of the delta; its effect goes with `alpha/rank`."""
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """How B starts, as PEFT's LoRA."""


class PeftSection(Section):
    """A baseline trained by PEFT."""

    method: Literal["lora", "dora", "pissa"] = "lora"
    """LoRA, DoRA (with magnitudes) or PiSSA (starting at the principal directions)."""
    rank: Annotated[int, Field(gt=0)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scale of each adapter; its effect goes with `alpha/rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs left out at each step."""
    targets: str | list[str] = "all-linear"
    """The modules that get an adapter, as PEFT's `target_modules`."""


class BoundarySection(Section):
    """Counter-examples made from the rows of `data.train`: the new task's question or context, and
    something that does not fit. What the base itself says there is learned.
    """

    kinds: list[Kind] = Field(default=list(get_args(Kind)), min_length=1)
    """`far_swap` and `near_swap`: another row's context, as far from the question or as near to it
    as there is; `drop`: without what the answer rests on; `bare`: without any context; `foreign`:
    another question, which the base writes.
    """


class RehearseSection(Section):
    """Learn, beside the new task, what the base predicts: on given texts after the last 256 tokens
    of each, in its own words on every token of its answer, where each answer counts once. One text
    in ten is held out, to measure the drift.
    """

    prompts: dict[FileName, Share] = Field(default={"protected": 0.05}, min_length=1)
    """What is rehearsed, each with its share of all examples (0 measures the drift alone):
    `protected`, the protected set; `base`, questions and answers that the base writes; `boundary`,
    counter-examples made from your own rows; or a file like `protected.prompts`, whose chats may
    end in an answer.
    """
    boundary: BoundarySection = BoundarySection()
    """How `boundary` makes counter-examples."""
    most_tokens: Annotated[int, Field(gt=0)] = 64
    """The longest answer that the base writes for `base` and `boundary`."""
    top_k: Annotated[int, Field(gt=0)] = 64
    """The base's likeliest tokens that the divergence is taken over, beside the rest as one."""

    @property
    def share(self) -> float:
        """The share of all examples that are rehearsed."""
        return sum(self.prompts.values())

    @property
    def given(self) -> list[str]:
        """The prompts that the base does not write."""
        return [name for name in self.prompts if name not in WRITTEN_BY_BASE]

    @model_validator(mode="after")
    def _check_share(self) -> "RehearseSection":
        if self.share >= 1:
            raise ValueError(f"implant.rehearse.prompts has shares of {self.share:g} together, allowed is less than 1")
        return self


class ImplantSection(Section):
    """How the selected rows, or what they are compared with, train."""

    mode: Literal["mask", "rows", "lora", "full", "peft", "suppress"] = "rows"
    """What trains: `rows`, `mask` (the same by masks), `lora` (low rank), `full`, `peft`;
    `suppress` zeroes rows.
    """
    lora: LowRankSection = LowRankSection()
    """Of mode `lora`."""
    peft: PeftSection = PeftSection()
    """Of mode `peft`."""
    rehearse: RehearseSection | None = None
    """Mix in what the base predicts on known texts; `{}` takes the defaults."""
    pull: Annotated[float, Field(ge=0)] = 0.0
    """After each step what trains goes back to the base by `learning_rate * pull` of its way."""
    fade: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The same for any rate and length: the share of its way back that an unused change has gone at
    the end.
    """
    early_stopping: Annotated[int, Field(gt=0)] | None = None
    """Evaluations without a better one until it ends; needs `training.load_best_model_at_end`."""

    @property
    def kind(self) -> Mode:
        return MODES[self.mode]

    @property
    def is_pulled(self) -> bool:
        return self.pull > 0 or self.fade > 0

    @property
    def method(self) -> str:
        """What reports call it: the mode, or PEFT's method."""
        return self.peft.method if self.kind.leaves == "adapter" else self.mode

    @model_validator(mode="after")
    def _check_mode(self) -> "ImplantSection":
        for key in ("pull", "fade", "rehearse"):
            if getattr(self, key) and key not in self.kind.reads:
                *others, last = (name for name, mode in MODES.items() if key in mode.reads)
                raise ValueError(f"implant.{key} needs implant.mode {', '.join(others)} or {last}, it is {self.mode}")
        if self.pull and self.fade:
            raise ValueError(f"implant.pull is {self.pull:g} and implant.fade {self.fade:g}; one of them must be 0")
        return self
