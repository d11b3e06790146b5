"""What a recipe would do and need on so many ranks of a GPU, from the model's configuration alone:
no weights are loaded, and nothing is drawn here.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from loki_ds.checking.base import check_passes, data_found, look_at_base
from loki_ds.checking.findings import Findings
from loki_ds.checking.selection import check_selection
from loki_ds.checking.tasks import limits_in_words
from loki_ds.data.dataset import Counts, examples_in, examples_of, first_counts, needs_of
from loki_ds.data.messages import NotUnderstood
from loki_ds.data.render_settings import Rendering, make_rendering, setting
from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.data.sources import place_of
from loki_ds.implanting.pull import in_words, planned_rates, strength_of
from loki_ds.implanting.rehearsal_rows import MOST_HELD_OUT, count_for
from loki_ds.implanting.training import Method
from loki_ds.implanting.trl_checks import check_settings
from loki_ds.implanting.trl_config import TrainingShape, deepspeed_config
from loki_ds.model.base import load_configuration, load_tokenizer, stop_tokens
from loki_ds.model.base_checks import check_plain, without_data
from loki_ds.model.row_blocks import blocks_of, chosen_blocks
from loki_ds.planning.estimate import Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import Gpu
from loki_ds.planning.partitioning import Setting, kept_bytes
from loki_ds.planning.passes import Passes, Prompts, Stage, prompts_of, training_stages
from loki_ds.recipe.implant import RehearseSection
from loki_ds.recipe.sections import DataSection, Recipe
from loki_ds.recipe.shipped import resolve_file
from loki_ds.recipe.training_keys import SCHEDULE
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions

CONFIGS = ("launch/zero2.json", "launch/zero3.json", "launch/zero3_offload.json")  # from the fastest to the thriftiest
LOOKED_AT = 1000  # rows of a source


class Alternative(NamedTuple):
    """Another DeepSpeed configuration, with or without activations computed twice."""

    file: str
    checkpointing: bool
    training: Training


@dataclass(frozen=True)
class Plan:
    """All of it. rows: that train, by block (one number for all where they are chosen over
    the whole model); findings: of base, template and data, as `check` says them; example: pieces of
    text, and whether they are trained on.
    """

    model: str
    run: str
    gpu: Gpu
    setting: Setting
    blocks: list[Block]
    rows: list[int] | None
    over_all_layers: bool
    trainable: int | None
    training: Training | None
    stages: list[Stage]
    alternatives: list[Alternative]
    configured: bool  # whether the recipe names a DeepSpeed configuration
    findings: Findings
    example: list[tuple[str, bool]]


def make_plan(recipe: Recipe, gpu: Gpu, ranks: int) -> Plan:
    """Everything `loki-ds plan` shows.

    Raises:
        Refusal: the model's configuration, the data or DeepSpeed's file cannot be used.
    """
    check_settings(recipe.training, recipe.implant, recipe.data)
    planned = _Planned(recipe, gpu, ranks)
    findings, blocks = planned.looked_at
    confined = planned.positions if recipe.implant.kind.masks else None
    training, alternatives = planned.trainings() if recipe.implant.kind.trains else (None, [])
    stages = planned.passes_over_prompts()
    example: list[tuple[str, bool]] = []
    if training is not None:
        examples = examples_in(recipe.data)
        if section := recipe.implant.rehearse:
            examples += sum(count_for(examples, share, section.share) for share in section.prompts.values())
        steps = planned.shape.steps(recipe.training, examples, ranks)
        stages += training_stages(training, planned.shape, steps, gpu)
        findings = findings + planned.training_findings(steps)
        example = _marked(recipe.data, planned.rendering)
    return Plan(
        model=recipe.model.path,
        run=recipe.run,
        gpu=gpu,
        setting=planned.setting,
        blocks=blocks,
        rows=[len(rows) for rows in planned.positions.rows] if planned.positions else None,
        over_all_layers=recipe.selection.positions is None and recipe.selection.strategy.startswith("global"),
        trainable=_numbers(confined, blocks) if confined else training.trained if training else None,
        training=training,
        stages=stages,
        alternatives=alternatives,
        configured=recipe.deepspeed is not None,
        findings=findings + limits_in_words(recipe.retention),
        example=example,
    )


@dataclass(frozen=True)
class _Planned:
    """What the plan's parts rest on, each looked at once."""

    recipe: Recipe
    gpu: Gpu
    ranks: int

    @cached_property
    def config(self) -> PreTrainedConfig:
        section = self.recipe.model
        return load_configuration(section.path, section.trust_remote_code, section.revision)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        section = self.recipe.model
        return load_tokenizer(section.path, section.trust_remote_code, section.revision)

    @cached_property
    def looked_at(self) -> tuple[Findings, list[Block]]:
        """The base by its weights' headers or its configuration; and what rows are chosen from."""
        section, implant, selection = self.recipe.model, self.recipe.implant, self.recipe.selection
        attributes, folder = self.recipe.needs_attribution, Path(section.path)
        if any(folder.glob("*.safetensors")):
            base_found = look_at_base(section, implant, selection, attributes, folder, self.config)
            return [("base", base_found.said())], base_found.blocks
        check_plain(section.path, self.config)
        model = without_data(folder, self.config, section.trust_remote_code)
        check_passes(implant, attributes, model)
        said = f"{section.path}: {self.config.model_type}, by its configuration; its weights are not here"
        return [("base", said)], blocks_of(chosen_blocks(model, selection)) if implant.kind.confined else []

    @property
    def blocks(self) -> list[Block]:
        return self.looked_at[1]

    @cached_property
    def positions(self) -> Positions | None:
        """The rows, as many as will be chosen; None for baselines."""
        if not self.recipe.changes_rows:
            return None
        check_selection(self.recipe.selection, self.blocks)
        return planned_positions(self.recipe.selection, self.blocks)

    @cached_property
    def setting(self) -> Setting:
        deepspeed = deepspeed_config(self.recipe.deepspeed, self.recipe.implant)
        return Setting.of(deepspeed, self.ranks, self.config.get_text_config().hidden_size)

    @cached_property
    def shape(self) -> TrainingShape:
        """As the settings have it, but unless rows are packed no longer than the longest that was
        looked at.
        """
        shape = TrainingShape.of(self.recipe.training, self.recipe.model.dtype)
        if not self.counts or setting(self.recipe.training, "packing"):
            return shape
        return replace(shape, tokens=min(shape.tokens, max(count.longest for count in self.counts)))

    def passes_over_prompts(self) -> list[Stage]:
        """Attribution, and the base's answers to rehearse."""
        recipe, stages, rehearse = self.recipe, [], self.recipe.implant.rehearse
        if recipe.protected is not None and recipe.needs_attribution:
            stages.append(self._passes(prompts_of(recipe.protected, self.tokenizer)).attribution())
        if rehearse is not None:
            stages += [self._rehearsal(rehearse, name) for name in rehearse.prompts]
        return stages

    def _rehearsal(self, section: RehearseSection, name: str) -> Stage:
        """What the base is asked of one of the prompts; what it writes it reads again."""
        wanted = count_for(examples_in(self.recipe.data), section.prompts[name], section.share) + MOST_HELD_OUT
        if name in section.given:
            texts = prompts_of(self.recipe.rehearsed[name], self.tokenizer)
            return self._passes(texts._replace(total=min(texts.total, wanted))).rehearsal(name)
        tokens = self.shape.tokens + section.most_tokens
        return self._passes(Prompts(wanted, tokens)).rehearsal(f"{name}, written and read", times=2)

    def _passes(self, prompts: Prompts) -> Passes:
        sweep = partial(dry_sweep, self.config, self.recipe.model)
        return Passes(prompts, sweep, self.recipe.attribution, self.setting, self.shape.bytes_per_number, self.gpu)

    def trainings(self) -> tuple[Training, list[Alternative]]:
        """The recipe's own setting, and every shipped one, with activations kept and made anew."""
        section = self.recipe.implant
        method = Method(section, self.positions)
        kept = kept_bytes(section.kind.masks, section.is_pulled)
        steps = [
            dry_step(self.config, self.recipe.model, method, replace(self.shape, checkpointing=twice))
            for twice in (False, True)
        ]
        hidden_size = self.config.get_text_config().hidden_size
        configs = {file: json.loads(Path(resolve_file(file)).read_text(encoding="utf-8")) for file in CONFIGS}
        shipped = [(file, Setting.of(config, self.ranks, hidden_size)) for file, config in configs.items()]
        others = [
            Alternative(file, step.checkpointing, estimate(step, setting, self.shape, section.kind, kept))
            for step, (file, setting) in product(steps, shipped)
        ]
        planned = steps[self.shape.checkpointing]
        return estimate(planned, self.setting, self.shape, section.kind, kept), others

    @cached_property
    def rendering(self) -> Rendering:
        """How examples become tokens, by what the first rows of each source ask of a template."""
        needs = needs_of(self.recipe.data.sources, LOOKED_AT)
        drops = self.recipe.data.thoughts == "drop"
        return make_rendering(needs, self.recipe.training, self.tokenizer, self.recipe.model.path, drops)

    @cached_property
    def counts(self) -> list[Counts]:
        """The first rows of each source as the run will render them."""
        if not self.recipe.implant.kind.trains:
            return []
        vocabulary, renderer = self.config.get_text_config().vocab_size, self.rendering.renderer
        cut, sources = self.rendering.loss.cut, self.recipe.data.sources
        return [first_counts(source, renderer, cut, vocabulary, LOOKED_AT) for source in sources]

    def training_findings(self, steps: int) -> Findings:
        """The pull, the template and the rows."""
        pull: Findings = []
        if self.recipe.implant.fade:
            pull = [("pull", _pull_in_words(self.recipe.implant.fade, self.recipe.training, steps))]
        return pull + data_found(
            self.rendering, self.counts, self.config, stop_tokens(self.recipe.model.path, self.config)
        )


# --- the stages -----------------------------------------------------------------------------------


def _numbers(positions: Positions, blocks: list[Block]) -> int:
    """How many numbers the selected rows hold."""
    return sum(len(rows) * block.width for rows, block in zip(positions.rows, blocks, strict=True))


def _pull_in_words(fade: float, training: dict, steps: int) -> str:
    schedule = {key: value for key, value in training.items() if key in SCHEDULE}
    rates = planned_rates(SFTConfig(output_dir="plan", use_cpu=True, **schedule), steps)
    return in_words(strength_of(fade, rates), rates)


def _marked(data: DataSection, rendering: Rendering) -> list[tuple[str, bool]]:
    """The first example as the model will see it, in pieces, and whether each is trained on."""
    number, first = next(examples_of(data.train[0]))
    try:
        rendered = rendering.renderer.render(first)
    except NotUnderstood as problem:
        raise Refusal(f"{place_of(data.train[0], number)} {problem}") from None
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        if not pieces or pieces[-1][1] != (label != NOT_LEARNED):
            pieces.append(([], label != NOT_LEARNED))
        pieces[-1][0].append(token)
    return [(str(rendering.renderer.tokenizer.decode(piece)), trained) for piece, trained in pieces]
