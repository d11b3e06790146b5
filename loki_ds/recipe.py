"""The recipe: one YAML file, one run. Read once, checked whole, then handed to the stages section by section.

Knows the keys, their types and their limits. Knows nothing of models, data or ranks, except that it asks TRL which training keys
there are. Paths are relative to the folder the command is typed in.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loki_ds.refusal import Refusal, did_you_mean
from loki_ds.selection import BY_SCORES, BY_SENSITIVITY

Strategy = Literal[
    "layer_balanced",
    "layer_highest",
    "layer_smallest",
    "global_lowest",
    "global_highest",
    "layer_sensitivity",
    "layer_gain",
    "random",
]
Rule = Literal["right", "left", "trapezoid", "gauss_legendre"]
Target = Literal["probability", "logit"]


class Section(BaseModel):
    """Part of a recipe: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    """The base model: a folder with a Hugging Face checkpoint in safetensors, or a hub id."""

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    trust_remote_code: bool = False


class ProtectedSection(Section):
    """The protected set: a JSONL file `prompts` of `{"prompt": text}` or `{"messages": [...]}` with an optional `subject`, or lm-eval
    `tasks` (each task a subject). `token` is where attribution looks, counted from the prompt's end."""

    prompts: str | None = None
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    include_path: str | None = None
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


class StopSection(Section):
    """Stop attributing when the rows selected on two halves of the prompts overlap by `overlap`; looked at after every `every` prompts
    of each subject."""

    overlap: Annotated[float, Field(gt=0, le=1)]
    every: Annotated[int, Field(gt=0)] = 10


class AttributionSection(Section):
    """Knowledge Vector Attribution (paper eq. 5): see `loki_ds.attribute`.

    `batch_size` auto is what fits into `memory_gib` of each rank's device (80% of what is free when not given), as measured.
    """

    steps: Annotated[int, Field(gt=0)] = 7
    rule: Rule = "right"
    target: Target = "probability"
    multiply_by_value: bool = True
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    stop: StopSection | None = None


class SelectionSection(Section):
    """Which rows may train: by strategy and quota, or from a positions file; `exclude` names implant files whose rows stay theirs."""

    strategy: Strategy = "layer_balanced"
    quota: Annotated[float, Field(gt=0, lt=100)] = 10.0
    seed: int = 0
    positions: str | None = None
    exclude: list[str] = []


class LowRankSection(Section):
    """LoKI*: the rows' delta is `alpha/rank A B`; `init` is how B starts (A starts at zero), as PEFT starts LoRA."""

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
    """Quiet implanting: keep the delta out of the directions that hold `energy` of what the layers receive on protected prompts.

    `sketch`: how many directions of each layer's inputs to keep track of; when not given, all of them if half the host's free memory
    holds that, else as many as it does.
    """

    energy: Annotated[float, Field(gt=0, lt=1)] = 0.99
    sketch: Annotated[int, Field(gt=0)] | None = None


class ImplantSection(Section):
    """How the selected rows train (DESIGN 5): `mask`, `rows`, or `lora`, a low rank of them. `full` and `peft` are baselines;
    `suppress` trains nothing and sets the selected rows to zero (the paper's S-H and S-L).

    `l2_sp` makes `full` the baseline of that name: after each step the weights go back by `learning_rate * l2_sp` of their way.
    """

    mode: Literal["mask", "rows", "lora", "full", "peft", "suppress"] = "rows"
    lora: LowRankSection = LowRankSection()
    peft: PeftSection = PeftSection()
    quiet: QuietSection | None = None
    l2_sp: Annotated[float, Field(gt=0)] | None = None
    early_stopping: Annotated[int, Field(gt=0)] | None = None


class SourceSection(Section):
    """One set of examples: a local JSON, JSON Lines, Parquet or CSV file, or a hub id; `weight` is its share in a mix."""

    path: str
    name: str | None = None
    split: str = "train"
    weight: Annotated[float, Field(gt=0)] = 1.0


class DataSection(Section):
    """The new task. Rows are chats (`messages`, with `tools` if any), `prompt`/`completion` pairs, plain `text`, ShareGPT or Alpaca."""

    train: str | list[SourceSection] = []
    heldout: str | SourceSection | None = None

    @property
    def train_sources(self) -> list[SourceSection]:
        return [SourceSection(path=self.train)] if isinstance(self.train, str) else self.train

    @property
    def heldout_source(self) -> SourceSection | None:
        return SourceSection(path=self.heldout) if isinstance(self.heldout, str) else self.heldout


class TaskGroup(Section):
    """lm-eval tasks that run under the same settings."""

    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    apply_chat_template: bool = False


class RetentionSection(Section):
    """What is measured on the base and on the implanted model, document by document.

    `abilities` is a group of tasks, several groups, or a suite: a name (`eval/suites/NAME.yaml`) or a YAML file of groups.
    `margin` is the loss of a task's score that still counts as kept (0.01: one point). A group's `limit` is a random sample by `seed`.
    Each model is evaluated by `processes` (auto: one for every `devices_per_model` devices of this node), which share the documents.
    Tasks that run code the model wrote (HumanEval) need `allow_code_execution`: that code could do anything the user may do.
    """

    abilities: TaskGroup | list[TaskGroup] | str
    new_task: TaskGroup | None = None
    include_path: str | None = None
    backend: Literal["hf", "vllm"] = "hf"
    processes: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    devices_per_model: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0)] = 8
    allow_code_execution: bool = False
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    seed: int = 0

    @property
    def ability_groups(self) -> list[TaskGroup]:
        """The abilities, with a suite's file read."""
        if isinstance(self.abilities, str):
            return load_suite(self.abilities)
        return self.abilities if isinstance(self.abilities, list) else [self.abilities]


SUITES = Path("eval/suites")


class Suite(Section):
    """A file of task groups."""

    groups: Annotated[list[TaskGroup], Field(min_length=1)]


def load_suite(name: str) -> list[TaskGroup]:
    """The groups of a suite, by its name or its file.

    Raises:
        Refusal: no such suite, or its file is not one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.exists():
        known = [file.stem for file in SUITES.glob("*.yaml")]
        raise Refusal(f"retention.abilities: no suite {name!r} ({path} is not there){did_you_mean(name, known)}")
    try:
        return Suite.model_validate(_read_yaml(path)).groups
    except ValidationError as error:
        raise Refusal(_sentence(path, error, Suite)) from None


class Recipe(Section):
    """One run, resolved. `source` is the file it came from; `run` is the run folder."""

    model: ModelSection
    protected: ProtectedSection | None = None
    attribution: AttributionSection = AttributionSection()
    selection: SelectionSection = SelectionSection()
    implant: ImplantSection = ImplantSection()
    data: DataSection = DataSection()
    training: dict[str, Any] = {}
    deepspeed: str | None = None
    retention: RetentionSection
    run: str

    @property
    def trains(self) -> bool:
        return self.implant.mode != "suppress"

    @property
    def changes_rows(self) -> bool:
        """False for the baselines that train every parameter or an adapter."""
        return self.implant.mode in ("mask", "rows", "lora", "suppress")

    @property
    def attributes(self) -> bool:
        """Whether the selection rests on attribution scores."""
        return self.changes_rows and self.selection.positions is None and self.selection.strategy in BY_SCORES

    @property
    def senses(self) -> bool:
        """Whether the selection rests on sensitivities."""
        return self.changes_rows and self.selection.positions is None and self.selection.strategy in BY_SENSITIVITY

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if (self.attributes or self.senses) and self.protected is None:
            raise ValueError(f"selection.strategy {self.selection.strategy} needs a protected set: add the section 'protected'")
        if self.implant.quiet and self.implant.mode not in ("mask", "rows", "lora"):
            raise ValueError(f"implant.quiet needs implant.mode mask, rows or lora, it is {self.implant.mode}")
        if self.implant.quiet and self.protected is None:
            raise ValueError("implant.quiet needs a protected set: add the section 'protected'")
        if self.implant.l2_sp is not None and self.implant.mode != "full":
            raise ValueError(f"implant.l2_sp needs implant.mode full, it is {self.implant.mode}")
        if not self.data.train and self.trains:
            raise ValueError("the key data.train is missing; only implant.mode suppress trains on nothing")
        known = training_keys()
        for key in self.training:
            if key not in known:
                raise ValueError(f"training.{key} is not a key of TRL's SFTConfig that a recipe may set{did_you_mean(key, known)}")
        return self


NOTES = ("versions", "world_size")  # what a run folder's copy of its recipe says beside it; such a copy can be run again
RESERVED = {"output_dir": "the run folder", "deepspeed": "the recipe's own key 'deepspeed'", "model_init_kwargs": "model"}


def training_keys() -> set[str]:
    """What `training:` may hold: the fields of TRL's `SFTConfig`, less those the recipe sets elsewhere."""
    from trl import SFTConfig

    return {field.name for field in fields(SFTConfig) if field.init} - set(RESERVED)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and put dotted `key=value` overrides on top.

    Without a `run` key the run folder is `runs/FAMILY/RECIPE`, and every override is part of its name, so that a run with
    another quota never meets the results of this one. A run folder's own `recipe.yaml` is a recipe too.

    Raises:
        Refusal: the file is missing, is not YAML, or a key or value is not allowed.
    """
    path, overrides = Path(path), overrides or []
    raw = _read_yaml(path)
    for note in NOTES:
        raw.pop(note, None)
    for override in overrides:
        _override(raw, override)
    changes = "".join(f"+{o}" for o in overrides if not o.startswith("run="))
    raw.setdefault("run", str(Path("runs", path.parent.name, path.stem + changes.replace("/", "_"))))
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise Refusal(_sentence(path, error, Recipe)) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key given twice is refused, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path}: the recipe cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(f"{path}: not a YAML recipe: {_short(' '.join(str(error).split()), 300)}") from None
    if not isinstance(raw, dict):
        raise Refusal(f"{path}: a recipe is a mapping of sections, this is a {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise Refusal(f"override {override!r}: must be written key=value, for example selection.quota=20")
    *parents, last = dotted.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise Refusal(f"override {override!r}: {parent} is a single value, not a section")
    try:
        section[last] = _parsed(value)
    except (yaml.YAMLError, RecursionError):
        raise Refusal(f"override {_short(override)!r}: the value {_short(value)!r} is not YAML") from None


MOST_NODES = 10_000  # of a recipe, with every alias written out


def _parsed(text: str) -> Any:
    """YAML's safe subset; a text that grows beyond reason when its aliases are written out is an error."""
    node = yaml.compose(text, _StrictLoader)
    if node is None:
        return None
    if _size(node, {}) > MOST_NODES:
        raise yaml.YAMLError(f"it holds more than {MOST_NODES} values when its aliases are written out")
    return yaml.load(text, _StrictLoader)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there are below and at this one, an aliased one as often as it is named."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # what it counts while it is being counted: an alias of itself is endless
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts))
    return known[id(node)]


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _sentence(path: Path, error: ValidationError, root: type[Section]) -> str:
    """One thing wrong in a file that holds a `root`, as one sentence: the first one, or of alternatives the one that got furthest."""
    errors = error.errors()
    deepest = max(len(e["loc"]) for e in errors if e["loc"][:2] == errors[0]["loc"][:2]) if errors[0]["loc"] else 0
    first = min((e for e in errors if len(e["loc"]) >= deepest), key=lambda e: e["type"] != "extra_forbidden")
    key, section = _key_and_section(first["loc"], root)
    if first["type"] == "extra_forbidden":
        key = ".".join(part for part in (key, str(first["loc"][-1])) if part)
        return f"{path}: {key} is not a key of a {root.__name__.lower()}{did_you_mean(str(first['loc'][-1]), section.model_fields)}"
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing"
    if first["type"] == "value_error":
        return f"{path}: {_short(str(first['ctx']['error']), 300)}"
    same = [e["msg"].removeprefix("Input should be ") for e in errors if _key_and_section(e["loc"], root)[0] == key]
    return f"{path}: {key} is {_short(repr(first['input']))}, allowed is {' or '.join(dict.fromkeys(same))}"


def _key_and_section(loc: tuple[int | str, ...], root: type[Section]) -> tuple[str, type[Section]]:
    """The dotted key of an error, without pydantic's names for the alternatives of a type, and the innermost section on its way."""
    section, key = root, []
    for part in loc:
        if isinstance(part, int):
            key.append(str(part))
        elif part in section.model_fields:
            key.append(part)
            section = _section_of(section.model_fields[part].annotation) or section
    return ".".join(key), section


def _section_of(annotation: Any) -> type[Section] | None:
    """The section in a type like `list[Section] | str | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
