"""The recipe's section `implant`: how the selected rows, or what they are compared with, train."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from loki_ds.recipe.modes import MODES, Mode
from loki_ds.recipe.shipped import FileName
from loki_ds.recipe.strict import Section


class LowRankSection(Section):
    """LoKI*: the rows' delta is `alpha/rank A B`. A starts at zero, B by `init`, as PEFT's LoRA."""

    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    init: Literal["kaiming", "gaussian"] = "kaiming"


class PeftSection(Section):
    """A baseline trained by PEFT: LoRA, DoRA or PiSSA on `targets` (PEFT's `target_modules`)."""

    method: Literal["lora", "dora", "pissa"] = "lora"
    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | list[str] = "all-linear"


class QuietSection(Section):
    """Quiet implanting: keep the delta out of the directions that hold `energy` of what the layers
    receive on protected prompts.

    `sketch`: how many directions of each layer's inputs to keep track of; when not given, all of
    them if half the host's free memory holds that, else as many as it does.
    """

    energy: Annotated[float, Field(gt=0, lt=1)] = 0.99
    sketch: Annotated[int, Field(gt=0)] | None = None


class RehearseSection(Section):
    """Learn, beside the new task, what the base predicts on texts of what it knows: the divergence
    from its predictions on the last 256 tokens of each text and its likeliest next one.

    `prompts`: `protected`, the protected set, or a file like `protected.prompts`, in which a chat
    may end with an answer. `share` of all examples. The divergence is taken over the base's `top_k`
    likeliest tokens and the rest.

    One text in ten is held out; the divergence there, the drift, is measured at every evaluation
    and at the end. `stop_at_drift` ends the training once it is larger, in nats a token. A `share`
    of 0 rehearses nothing and measures the drift alone.
    """

    prompts: FileName = "protected"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    top_k: Annotated[int, Field(gt=0)] = 64
    stop_at_drift: Annotated[float, Field(gt=0)] | None = None


class ImplantSection(Section):
    """How the selected rows train: `mask`, `rows`, or `lora`, a low rank of them.

    `full` trains everything, `peft` an adapter; `suppress` trains nothing and sets the selected
    rows to zero (the paper's S-H and S-L). `early_stopping`: after so many evaluations on held-out
    examples that are no better than the best (it needs `training.load_best_model_at_end`).

    `pull`: after each step what trains goes back to the base by `learning_rate * pull` of its way.
    `fade` is the same for any rate and any number of steps: the share of its way back that a change
    has gone at the end if nothing asks for it again.
    """

    mode: Literal["mask", "rows", "lora", "full", "peft", "suppress"] = "rows"
    lora: LowRankSection = LowRankSection()
    peft: PeftSection = PeftSection()
    quiet: QuietSection | None = None
    rehearse: RehearseSection | None = None
    pull: Annotated[float, Field(ge=0)] = 0.0
    fade: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stopping: Annotated[int, Field(gt=0)] | None = None

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
