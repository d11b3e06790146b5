"""The recipe of one run: its sections, their keys, types and limits.

Checked whole; each stage then gets its own section. Knows nothing of files (`file` reads them),
models, data or ranks, and is quick to import. Paths are relative to where the command is typed.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from loki_ds.recipe.implant import ImplantSection
from loki_ds.recipe.shipped import FileName, Folder
from loki_ds.recipe.strategies import BY_SCORES, Place, Strategy
from loki_ds.recipe.strict import Section
from loki_ds.recipe.training_keys import check_training_keys, with_no_as_a_word

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)


def _one_or_more(value: Any) -> Any:
    """A single one may stand for a list of one, and null for none."""
    return value if isinstance(value, list) else [] if value is None else [value]


Folders = Annotated[list[FileName], BeforeValidator(_one_or_more)]


class ModelSection(Section):
    """The base model."""

    path: FileName
    """A folder with a Hugging Face checkpoint in safetensors, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the newest of `main` when not given."""
    dtype: Dtype = "bfloat16"
    """What the model computes in; the optimizer keeps float32 beside it. `loki-ds retain` takes the
    checkpoint's own where none is given.
    """
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None
    """The attention that trains, transformers' choice when not given; attribution takes sdpa or
    eager.
    """
    trust_remote_code: bool = False
    """Run the model's own Python files; only for a model whose code you have read."""

    @property
    def named(self) -> str:
        """What reports call it."""
        return f"{self.path}@{self.revision}" if self.revision else self.path


class ProtectedSection(Section):
    """The protected set: prompts of what the model is to keep, from a file or lm-eval's tasks."""

    prompts: FileName | None = None
    """A JSONL file of `{"prompt": text}` or `{"messages": [...]}`, each with an optional `subject`.
    """
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    """lm-eval tasks instead of a file; each task is a subject."""
    include_path: Folders = Field(default=[])
    """Folders of your own lm-eval tasks: one, or a list."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question of a task; the task's own number when not given."""
    apply_chat_template: bool = False
    """Ask as in a chat; for chat models whose tasks are evaluated so."""
    subjects: list[str] | None = None
    """Only these subjects; all when not given."""
    per_subject: Annotated[int, Field(gt=0)] | None = None
    """A random sample of so many prompts of each subject; all when not given."""
    seed: int = 0
    """Seed of that sample."""
    token: Annotated[int, Field(lt=0)] = -1
    """The token that attribution looks at, counted from the prompt's end: -1 is the last one."""

    @model_validator(mode="after")
    def _check_source(self) -> "ProtectedSection":
        if (self.prompts is None) == (self.tasks is None):
            raise ValueError("protected needs one source, either 'prompts' (a JSON Lines file) or 'tasks' (of lm-eval)")
        return self


class AttributionSection(Section):
    """Knowledge Vector Attribution (paper eq. 5): see `loki_ds.attribute`."""

    steps: Annotated[int, Field(gt=0)] = 7
    """Points on the path from 0 to what the FFN wrote; more where the log names large residuals."""
    rule: Literal["right", "left", "trapezoid", "gauss_legendre"] = "right"
    """How the points are weighed: the paper's right Riemann sum, or a closer quadrature."""
    target: Literal["probability", "logit"] = "probability"
    """What is attributed: the likeliest next token's probability (the paper's), or its logit."""
    multiply_by_value: bool = True
    """Score gradient times value, as the paper does; false scores the gradient alone."""
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Prompts at once on each rank; auto measures what fits into the memory."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB of each rank's device that `auto` may fill; 80% of what is free when not given."""


class SelectionSection(Section):
    """Which rows may train."""

    where: Place = "down"
    """The layers that rows are of: `down`, the FFNs' down-projections (the paper's), `gate_up`, a
    neuron's rows of gate and up together, `attention`, or `all` three. Elsewhere than in `down`
    rows have no scores: the strategy is `random`.
    """
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    """The first and the last layer that rows are chosen in, such as [8, 15]; all when not given."""
    strategy: Strategy = "layer_balanced"
    """How rows are chosen from the scores; `random` needs no scores and is the control."""
    quota: Annotated[float, Field(gt=0, lt=100)] = 10.0
    """Percent of each layer's rows that train: 5 to 30 in the paper; more learns more and changes
    more.
    """
    seed: int = 0
    """Seed of the strategy `random`."""
    positions: Folder | None = None
    """A positions file instead of a strategy, as `loki-ds select` writes it."""
    exclude: list[str] = Field(default=[])
    """Implant files whose rows are not chosen again, so that both can be applied."""

    @model_validator(mode="after")
    def _check_place(self) -> "SelectionSection":
        if self.where != "down" and self.strategy in BY_SCORES and self.positions is None:
            raise ValueError(
                f"selection.where {self.where} has no scores, and selection.strategy {self.strategy} chooses by them; "
                "set it to random"
            )
        if self.layers and self.positions is not None:
            raise ValueError("selection.layers and selection.positions choose rows both, allowed is one of them")
        if self.layers and self.layers[0] > self.layers[1]:
            raise ValueError(f"selection.layers is {self.layers}, allowed is the first and the last, in order")
        return self


class SourceSection(Section):
    """One source of examples; its path alone may stand for it."""

    path: FileName
    """A local JSON, JSON Lines, Parquet or CSV file, or the hub id of a data set."""
    name: str | None = None
    """The configuration of a hub id, where it has several."""
    split: str = "train"
    """The split of a hub id."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share in a mix, relative to the other sources'."""


def _named(value: Any) -> Any:
    """A source by its path alone."""
    return {"path": value} if isinstance(value, str) else value


DATA_FILES = (".json", ".jsonl", ".parquet", ".csv")  # endings of what is read here; other names are the hub's
Source = Annotated[SourceSection, BeforeValidator(_named)]


class DataSection(Section):
    """The new task: chats, pairs or texts."""

    train: Annotated[list[Source], BeforeValidator(_one_or_more)] = Field(default=[])
    """What is learned: a source, or a list of sources that are mixed by their weights."""
    heldout: Source | None = None
    """Examples that are only looked at, for evaluation during the training."""
    thoughts: Literal["keep", "drop"] = "keep"
    """`drop` learns answers without their thoughts (`<think>`, `reasoning_content`)."""

    @property
    def sources(self) -> list[SourceSection]:
        """All that is read, what is held out last."""
        return [*self.train, *([self.heldout] if self.heldout else [])]


class BudgetSection(Section):
    """What the scale is chosen by: either, or the largest that fits both."""

    forgetting: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The most that losses alone may come to: 0.01 is one percent of the base's scores."""
    skill: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the new skill that is to stay, of what the whole change gained; it needs
    `retention.new_task`. Where only `forgetting` is given and a new task is asked, one half.
    """

    @model_validator(mode="after")
    def _check_one(self) -> "BudgetSection":
        if self.forgetting is None and self.skill is None:
            raise ValueError("tune.budget needs one of the keys 'forgetting' and 'skill', or both")
        return self


Scale = Annotated[float, Field(ge=0, le=1.25)]


class TuneSection(Section):
    """How much of the change stays after training: the scale that fits the budget."""

    scales: Annotated[list[Scale], Field(min_length=1)] = Field(default=[0.25, 0.5, 0.75, 1.0])
    """Shares of the whole change that are tried; each is evaluated on half of the documents."""
    budget: BudgetSection
    """What may be lost, or must stay."""

    @model_validator(mode="after")
    def _check_scales(self) -> "TuneSection":
        if not any(self.scales):
            raise ValueError("tune.scales has nothing but 0, which is the base; allowed is a larger one, too")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"tune.scales is {self.scales}, allowed is each once")
        return self


class TaskGroup(Section):
    """lm-eval tasks that run under the same settings."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of lm-eval tasks or groups of tasks, or of your own under `include_path`."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; the task's own number when not given."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """A random sample of so many documents of each task, by `retention.seed`; all when not given.
    """
    apply_chat_template: bool = False
    """Ask as in a chat; for chat models."""


class RetentionSection(Section):
    """What is measured on the base and on the implanted model, document by document."""

    abilities: Annotated[list[TaskGroup], BeforeValidator(_one_or_more), Field(min_length=1)]
    """What is to be kept: a group of tasks, several, or the name of a suite (`quick`, `standard`,
    ...).
    """
    new_task: TaskGroup | None = None
    """What is to be learned."""
    include_path: Folders = Field(default=[])
    """Folders of your own lm-eval tasks: one, or a list."""
    processes: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Processes that share a model's documents; auto is one for every `devices_per_model`."""
    devices_per_model: Annotated[int, Field(gt=0)] = 1
    """Devices that one model needs; more than 1 for a model too large for one."""
    batch_size: Annotated[int, Field(gt=0)] = 8
    """Documents at once in each process."""
    allow_code_execution: bool = False
    """Run code that the model wrote (HumanEval): it can do anything that you may do."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The loss of a task's score that still counts as kept: 0.01 is one point."""
    stop: Literal["never", "decided"] = "never"
    """`decided` asks no more of an ability's documents once its loss is shown to be in or out."""
    chat_template_args: dict[str, Any] = Field(default={})
    """Handed to the chat template by lm-eval, such as `enable_thinking: false`."""
    think_end_token: str | None = None
    """The token up to which an answer is thought and not judged."""
    seed: int = 0
    """Seed of all random samples and shots."""

    @property
    def groups(self) -> list[TaskGroup]:
        """All that is asked, abilities first."""
        return [*self.abilities, *([self.new_task] if self.new_task else [])]

    @property
    def names(self) -> list[str]:
        """Of all tasks, in their order."""
        return [name for group in self.groups for name in group.tasks]


class Recipe(Section):
    """One run, resolved."""

    model: ModelSection
    """The base model: which, and how it computes."""
    protected: ProtectedSection | None = None
    """What the model is to keep; attribution and rehearsal read it."""
    attribution: AttributionSection = AttributionSection()
    """How rows are scored."""
    selection: SelectionSection = SelectionSection()
    """Which rows train."""
    implant: ImplantSection = ImplantSection()
    """How they train."""
    data: DataSection = DataSection()
    """What is learned."""
    training: Annotated[dict[str, Any], BeforeValidator(with_no_as_a_word)] = Field(default={})
    """Any key of TRL's `SFTConfig`, less those that follow from the rest of the recipe."""
    deepspeed: FileName | None = None
    """DeepSpeed's configuration, such as `launch/zero3.json`; without it each rank holds it all."""
    tune: TuneSection | None = None
    """How much of the change stays; all of it when not given."""
    retention: RetentionSection
    """How base and result are compared."""
    run: Folder
    """The run folder; from the recipe's name and its overrides when not given."""

    @property
    def changes_rows(self) -> bool:
        """False for the baselines that train every parameter or an adapter."""
        return self.implant.kind.confined

    @property
    def needs_attribution(self) -> bool:
        """Whether the selection rests on attribution scores."""
        return self.changes_rows and self.selection.positions is None and self.selection.strategy in BY_SCORES

    @property
    def rehearsed(self) -> dict[str, ProtectedSection]:
        """The given texts that are rehearsed, by their names in `implant.rehearse.prompts`: the
        protected set itself, or files read like one.
        """
        names = self.implant.rehearse.given if self.implant.rehearse else []
        return {
            name: self.protected if name == "protected" and self.protected else ProtectedSection(prompts=name)
            for name in names
        }

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.needs_attribution and self.protected is None:
            strategy = self.selection.strategy
            raise ValueError(f"selection.strategy {strategy} needs a protected set: add the section 'protected'")
        if self.protected is None and self.implant.rehearse and "protected" in self.implant.rehearse.prompts:
            raise ValueError("implant.rehearse needs a protected set: add 'protected', or name other rehearse.prompts")
        if not self.data.train and self.implant.kind.trains:
            raise ValueError("the key data.train is missing; only implant.mode suppress trains on nothing")
        if self.tune and not self.implant.kind.trains:
            raise ValueError(f"tune scales what was trained, and implant.mode {self.implant.mode} trains nothing")
        if self.tune and self.tune.budget.skill and self.retention.new_task is None:
            raise ValueError("tune.budget.skill needs retention.new_task, whose skill it is a share of")
        check_training_keys(self.training)
        return self
