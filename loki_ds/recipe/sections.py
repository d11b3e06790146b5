"""The recipe of one run: its sections, their keys, types and limits.

Checked whole; each stage then gets its own section. Knows nothing of files (`recipe_file` reads
them), models, data or ranks, and is quick to import. Paths are relative to the folder the command
is typed in.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.shipped import FileName
from loki_ds.recipe.strategies import BY_SCORES, Strategy
from loki_ds.recipe.strict import Section
from loki_ds.recipe.training_keys import check_training_keys, with_no_as_a_word


class ModelSection(Section):
    """The base model: a folder with a Hugging Face checkpoint in safetensors, or a hub id.

    `attention` is what trains, by default what transformers takes for the class; attribution needs
    masks of its own and computes with sdpa or eager.
    """

    path: FileName
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    trust_remote_code: bool = False


class ProtectedSection(Section):
    """The protected set: a JSONL file `prompts` of `{"prompt": text}` or `{"messages": [...]}` with
    an optional `subject`, or lm-eval `tasks` (each task a subject). `token` is where attribution
    looks, counted from the prompt's end.
    """

    prompts: FileName | None = None
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    include_path: FileName | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool = False
    subjects: list[str] | None = None
    per_subject: Annotated[int, Field(gt=0)] | None = None
    seed: int = 0
    token: Annotated[int, Field(lt=0)] = -1

    @model_validator(mode="after")
    def _check_source(self) -> "ProtectedSection":
        if (self.prompts is None) == (self.tasks is None):
            raise ValueError("protected needs one source, either 'prompts' (a JSON Lines file) or 'tasks' (of lm-eval)")
        return self


class AttributionSection(Section):
    """Knowledge Vector Attribution (paper eq. 5): see `loki_ds.attribute`.

    `batch_size` auto is what fits into `memory_gib` of each rank's device (80% of what is free when
    not given), as measured.
    """

    steps: Annotated[int, Field(gt=0)] = 7
    rule: Literal["right", "left", "trapezoid", "gauss_legendre"] = "right"
    target: Literal["probability", "logit"] = "probability"
    multiply_by_value: bool = True
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    memory_gib: Annotated[float, Field(gt=0)] | None = None


class SelectionSection(Section):
    """Which rows may train: by strategy, or a file; `exclude` names implants that keep theirs."""

    strategy: Strategy = "layer_balanced"
    quota: Annotated[float, Field(gt=0, lt=100)] = 10.0
    seed: int = 0
    positions: str | None = None
    exclude: list[str] = Field(default=[])


class SourceSection(Section):
    """A local JSON, JSON Lines, Parquet or CSV file, or a hub id; `weight`: its share in a mix."""

    path: FileName
    name: str | None = None
    split: str = "train"
    weight: Annotated[float, Field(gt=0)] = 1.0


def _one_or_more(value: Any) -> Any:
    """A single one may stand for a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _named(value: Any) -> Any:
    """A source by its path alone."""
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[SourceSection, BeforeValidator(_named)]


class DataSection(Section):
    """The new task: chats, pairs or texts. A source may be given by its path alone."""

    train: Annotated[list[Source], BeforeValidator(_one_or_more)] = Field(default=[])
    heldout: Source | None = None

    @property
    def sources(self) -> list[SourceSection]:
        """All that is read, what is held out last."""
        return [*self.train, *([self.heldout] if self.heldout else [])]


class BudgetSection(Section):
    """What the scale is chosen by: `forgetting`, the most that losses alone may come to (0.01: one
    percent of the base's scores), or `skill`, the share of the new skill that is to stay.
    """

    forgetting: Annotated[float, Field(gt=0, lt=1)] | None = None
    skill: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "BudgetSection":
        if (self.forgetting is None) == (self.skill is None):
            raise ValueError("tune.budget needs one of the keys 'forgetting' and 'skill'")
        return self


Share = Annotated[float, Field(ge=0, le=1.25)]


class TuneSection(Section):
    """After training: how much of the change stays.

    `scales` that are tried: shares of the whole change. The model with the one that fits the
    `budget` is the run's result.
    """

    scales: Annotated[list[Share], Field(min_length=1)] = Field(default=[0.25, 0.5, 0.75, 1.0])
    budget: BudgetSection

    @model_validator(mode="after")
    def _check_scales(self) -> "TuneSection":
        if not any(self.scales):
            raise ValueError("tune.scales has nothing but 0, which is the base; allowed is a larger one, too")
        return self


class TaskGroup(Section):
    """lm-eval tasks that run under the same settings."""

    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    apply_chat_template: bool = False


class RetentionSection(Section):
    """What is measured on the base and on the implanted model, document by document.

    `abilities` is a group of tasks or several; a recipe file may name a suite instead
    (`recipe_file.load_suite`). `margin` is the loss of a task's score that still counts as kept
    (0.01: one point). A group's `limit` is a random sample by `seed`. Each model is evaluated by
    `processes` (auto: one for every `devices_per_model` devices of this node), which share the
    documents. Tasks that run code the model wrote (HumanEval) need `allow_code_execution`: that
    code could do anything the user may do.

    `stop: decided` asks the implanted model each ability's documents in random order, and no more
    of them once its loss is shown to be within the margin, or beyond it. The base is asked all.

    `chat_template_args` (`enable_thinking: false`) and `think_end_token`, up to which an answer is
    thought, are lm-eval's.
    """

    abilities: Annotated[list[TaskGroup], BeforeValidator(_one_or_more), Field(min_length=1)]
    new_task: TaskGroup | None = None
    include_path: FileName | None = None
    backend: Literal["hf", "vllm"] = "hf"
    processes: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    devices_per_model: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0)] = 8
    allow_code_execution: bool = False
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    stop: Literal["never", "decided"] = "never"
    chat_template_args: dict[str, Any] = Field(default={})
    think_end_token: str | None = None
    seed: int = 0

    @property
    def groups(self) -> list[TaskGroup]:
        """All that is asked, abilities first."""
        return [*self.abilities, *([self.new_task] if self.new_task else [])]


class Recipe(Section):
    """One run, resolved.

    `run` is the run folder; `sequence_parallel` ranks share each sequence, for long ones.
    """

    model: ModelSection
    protected: ProtectedSection | None = None
    attribution: AttributionSection = AttributionSection()
    selection: SelectionSection = SelectionSection()
    implant: ImplantSection = ImplantSection()
    data: DataSection = DataSection()
    training: Annotated[dict[str, Any], BeforeValidator(with_no_as_a_word)] = Field(default={})
    deepspeed: FileName | None = None
    sequence_parallel: Annotated[int, Field(gt=0)] = 1
    tune: TuneSection | None = None
    retention: RetentionSection
    run: str

    @property
    def changes_rows(self) -> bool:
        """False for the baselines that train every parameter or an adapter."""
        return self.implant.kind.confined

    @property
    def needs_attribution(self) -> bool:
        """Whether the selection rests on attribution scores."""
        return self.changes_rows and self.selection.positions is None and self.selection.strategy in BY_SCORES

    @property
    def rehearsed(self) -> ProtectedSection | None:
        """The texts that are rehearsed: the protected set itself, or a file read like one."""
        section = self.implant.rehearse
        if section is None or section.prompts == "protected":
            return self.protected if section else None
        return ProtectedSection(prompts=section.prompts)

    @property
    def _evaluates(self) -> bool:
        """Whether held-out examples are looked at while it trains."""
        return self.data.heldout is not None and self.training.get("eval_strategy", "no") != "no"

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.needs_attribution and self.protected is None:
            strategy = self.selection.strategy
            raise ValueError(f"selection.strategy {strategy} needs a protected set: add the section 'protected'")
        if self.implant.quiet and self.protected is None:
            raise ValueError("implant.quiet needs a protected set: add the section 'protected'")
        if self.implant.rehearse and self.rehearsed is None:
            raise ValueError("implant.rehearse needs a protected set, or a file: add 'protected', or rehearse.prompts")
        if self.implant.rehearse and self.implant.rehearse.stop_at_drift and not self._evaluates:
            raise ValueError(
                "implant.rehearse.stop_at_drift needs data.heldout and training.eval_strategy steps or epoch"
            )
        if self.sequence_parallel > 1 and self.implant.rehearse:
            raise ValueError(f"implant.rehearse needs whole sequences, sequence_parallel is {self.sequence_parallel}")
        if self.sequence_parallel > 1 and self.deepspeed is None:
            shared = self.sequence_parallel
            raise ValueError(f"sequence_parallel is {shared}, which needs the key deepspeed (a ZeRO configuration)")
        if not self.data.train and self.implant.kind.trains:
            raise ValueError("the key data.train is missing; only implant.mode suppress trains on nothing")
        if self.tune and not self.implant.kind.trains:
            raise ValueError(f"tune scales what was trained, and implant.mode {self.implant.mode} trains nothing")
        if self.tune and self.tune.budget.skill and self.retention.new_task is None:
            raise ValueError("tune.budget.skill needs retention.new_task, whose skill it is a share of")
        check_training_keys(self.training)
        return self
