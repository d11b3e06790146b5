"""The recipe's section `implant`: how the selected rows, or what they are compared with, train."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from loki_ds.recipe.modes import MODES, Mode
from loki_ds.recipe.shipped import FileName
from loki_ds.recipe.strict import Section


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


class QuietSection(Section):
    """Subspace protection: the delta keeps out of the directions that protected prompts use."""

    energy: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """The share of what the layers receive on protected prompts that the delta keeps out of."""
    sketch: Annotated[int, Field(gt=0)] | None = None
    """Directions of each layer's inputs to keep track of; what half the free memory holds by
    default.
    """


class RehearseSection(Section):
    """Learn, beside the new task, what the base predicts on texts of what it knows: the last 256
    tokens of each and its likeliest next one. One text in ten is held out, to measure the drift.
    """

    prompts: FileName = "protected"
    """`protected`, the protected set, or a file like `protected.prompts`; a chat may end in an
    answer.
    """
    share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all examples that are rehearsed; 0 rehearses nothing and measures the drift alone.
    """
    top_k: Annotated[int, Field(gt=0)] = 64
    """The base's likeliest tokens that the divergence is taken over, beside the rest as one."""


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
    quiet: QuietSection | None = None
    """Keep the delta away from what protected prompts use; `{}` takes the defaults."""
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
        for key in ("quiet", "pull", "fade", "rehearse"):
            if getattr(self, key) and key not in self.kind.reads:
                *others, last = (name for name, mode in MODES.items() if key in mode.reads)
                raise ValueError(f"implant.{key} needs implant.mode {', '.join(others)} or {last}, it is {self.mode}")
        if self.pull and self.fade:
            raise ValueError(f"implant.pull is {self.pull:g} and implant.fade {self.fade:g}; one of them must be 0")
        return self
