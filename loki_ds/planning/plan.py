"""What a recipe would do and need on so many ranks of a GPU, from the model's configuration alone:
no weights are loaded, and nothing is drawn here.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig
from trl import SFTConfig

from loki_ds.checking.base import check_passes, data_found, look_at_base
from loki_ds.checking.findings import Findings
from loki_ds.checking.selection import check_selection
from loki_ds.checking.tasks import limits_in_words
from loki_ds.data.dataset import examples_in, examples_of, first_counts, needs_of
from loki_ds.data.messages import NotUnderstood
from loki_ds.data.render_settings import Rendering, make_rendering
from loki_ds.data.rendering import NOT_LEARNT
from loki_ds.disk.run_folder import RunFolder
from loki_ds.implanting.pull import in_words, planned_rates, strength_of
from loki_ds.implanting.rehearsal_rows import MOST_HELD_OUT, count_for
from loki_ds.implanting.training import Method
from loki_ds.implanting.trl_checks import check_settings
from loki_ds.implanting.trl_config import TrainingShape, deepspeed_config
from loki_ds.model.anatomy import down_shapes
from loki_ds.model.base import load_configuration, load_tokenizer
from loki_ds.model.base_checks import check_plain, without_data
from loki_ds.planning.dry_run import MicroStep
from loki_ds.planning.estimate import Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import Gpu
from loki_ds.planning.partitioning import Setting, kept_bytes
from loki_ds.planning.passes import Passes, Stage, prompts_of, training_stages
from loki_ds.quiet.kept import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe.implant import QuietSection
from loki_ds.recipe.sections import DataSection, Recipe
from loki_ds.recipe.shipped import found
from loki_ds.refusal import Refusal
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import planned_positions

CONFIGS = ("launch/zero2.json", "launch/zero3.json", "launch/zero3_offload.json")  # from the fastest to the thriftiest
SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
LOOKED_AT = 1000  # rows of a source


class Alternative(NamedTuple):
    """Another DeepSpeed configuration, with or without activations computed twice."""

    file: str
    checkpointing: bool
    training: Training


class Quieted(NamedTuple):
    """What a quiet implant may still use: of each layer's input directions, once the run knows the
    protected inputs; and the bytes of each tenth of them that it keeps out of, on every rank.
    """

    energy: float
    room: list[float] | None
    tenth: float


@dataclass(frozen=True)
class Plan:
    """All of it. rows: that train, by layer (one number for all layers where they are chosen over
    the whole model); findings: of base, template and data, as `check` says them; example: pieces of
    text, and whether they are trained on.
    """

    model: str
    run: str
    gpu: Gpu
    setting: Setting
    shapes: list[tuple[int, int]]
    rows: list[int] | None
    over_all_layers: bool
    trainable: int | None
    quiet: Quieted | None
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
    remote, mode = recipe.model.trust_remote_code, recipe.implant.kind
    config = load_configuration(recipe.model.path, remote)
    check_settings(recipe)
    findings, shapes = _look_at_base(recipe, config)
    tokenizer = load_tokenizer(recipe.model.path, remote)
    if recipe.changes_rows:
        check_selection(recipe.selection, shapes)
    positions = planned_positions(recipe.selection, shapes) if recipe.changes_rows else None
    deepspeed = deepspeed_config(recipe.deepspeed, recipe.implant)
    setting = Setting.of(deepspeed, ranks, config.get_text_config().hidden_size)
    shape = TrainingShape.of(recipe.training, recipe.model.dtype, recipe.sequence_parallel)
    stages: list[Stage] = []
    quiet = recipe.implant.quiet
    over = partial(Passes, sweep=partial(dry_sweep, config, recipe.model), section=recipe.attribution, setting=setting)
    over = partial(over, width=shape.bytes_per_number, gpu=gpu)
    if recipe.protected is not None and (recipe.needs_attribution or quiet):
        passes = over(prompts_of(recipe.protected, tokenizer))
        stages += [passes.attribution()] if recipe.needs_attribution else []
        stages += [passes.inputs(quiet, shapes)] if quiet else []
    if recipe.rehearsed is not None and recipe.implant.rehearse is not None:
        texts = prompts_of(recipe.rehearsed, tokenizer)
        asked = min(texts.total, count_for(examples_in(recipe.data), recipe.implant.rehearse.share) + MOST_HELD_OUT)
        stages.append(over(texts._replace(total=asked)).rehearsal())
    training, example, alternatives = None, [], []  # type: ignore[var-annotated]
    if mode.trains:
        dry = partial(dry_step, config, recipe.model, Method(recipe.implant, positions))
        frozen = 1 - positions.count / sum(d_model for d_model, _ in shapes) if positions and mode.masks else 0.0
        kept = kept_bytes(frozen, recipe.implant.is_pulled)
        shipped = shipped_settings(ranks, config.get_text_config().hidden_size)
        training, alternatives = _trainings(dry, shape, setting, shipped, partial(estimate, mode=mode, kept=kept))
        steps = shape.steps(recipe.training, examples_in(recipe.data), ranks)
        stages += training_stages(training, shape, steps, gpu)
        findings += [("pull", _pull_in_words(recipe, steps))] if recipe.implant.fade else []
        needed = needs_of(recipe.data.sources, LOOKED_AT)
        rendering = make_rendering(needed, recipe.training, tokenizer, recipe.model.path)
        findings += _look_at_data(recipe.data, rendering, config)
        example = _marked(recipe.data, rendering)
    findings += limits_in_words(recipe.retention)
    return Plan(
        model=recipe.model.path,
        run=recipe.run,
        gpu=gpu,
        setting=setting,
        shapes=shapes,
        rows=[len(rows) for rows in positions.rows] if positions else None,
        over_all_layers=recipe.selection.positions is None and recipe.selection.strategy.startswith("global"),
        trainable=_numbers(positions, shapes) if positions and mode.masks else training.trained if training else None,
        quiet=_quieted(quiet, RunFolder(recipe.run), shapes) if quiet else None,
        training=training,
        stages=stages,
        alternatives=alternatives,
        configured=deepspeed is not None,
        findings=findings,
        example=example,
    )


def shipped_settings(ranks: int, hidden_size: int) -> Iterator[tuple[str, Setting]]:
    """DeepSpeed's configurations beside the recipes: each file and what it means.

    Raises:
        Refusal: they are not where they are looked for.
    """
    for name in CONFIGS:
        yield name, Setting.of(json.loads(Path(found(name)).read_text(encoding="utf-8")), ranks, hidden_size)


# --- the stages -----------------------------------------------------------------------------------


def _trainings(
    dry: Callable[[TrainingShape], MicroStep],
    shape: TrainingShape,
    setting: Setting,
    shipped: Iterable[tuple[str, Setting]],
    estimated: Callable[[MicroStep, Setting, TrainingShape], Training],
) -> tuple[Training, list[Alternative]]:
    """The recipe's own setting, and every shipped one with activations kept and computed twice."""
    steps = [dry(replace(shape, checkpointing=twice)) for twice in (False, True)]
    others = [
        Alternative(file, step.checkpointing, estimated(step, other, shape))
        for step, (file, other) in product(steps, shipped)
    ]
    return estimated(steps[shape.checkpointing], setting, shape), others


def _quieted(section: QuietSection, folder: RunFolder, shapes: list[tuple[int, int]]) -> Quieted:
    moments, d_ff, room = folder.quiet / "moments.safetensors", shapes[0][1], None
    if moments.exists():
        room = [protected_subspace(moment, section.energy).room for moment in load_moments(moments)]
    return Quieted(section.energy, room, 4 * d_ff * d_ff * len(shapes) / 10)


def _numbers(positions: Positions, shapes: list[tuple[int, int]]) -> int:
    """In the selected rows."""
    return sum(len(rows) * width for rows, (_, width) in zip(positions.rows, shapes, strict=True))


def _look_at_base(recipe: Recipe, config: PreTrainedConfig) -> tuple[Findings, list[tuple[int, int]]]:
    """By its weights' headers where they are here, else by its configuration; and the shapes of its
    rows.
    """
    folder = Path(recipe.model.path)
    if any(folder.glob("*.safetensors")):
        found = look_at_base(recipe, folder, config)
        return [("base", found.said())], found.down_shapes
    check_plain(recipe.model.path, config)
    model = without_data(folder, config, recipe.model.trust_remote_code)
    check_passes(recipe, model)
    said = f"{recipe.model.path}: {config.model_type}, by its configuration; its weights are not here"
    return [("base", said)], down_shapes(model) if recipe.implant.kind.confined else []


def _look_at_data(data: DataSection, rendering: Rendering, config: PreTrainedConfig) -> Findings:
    """The first rows of each source, as the run will render them."""
    vocabulary, renderer = config.get_text_config().vocab_size, (rendering.renderer, rendering.loss.cut)
    counts = [first_counts(source, *renderer, vocabulary, LOOKED_AT) for source in data.sources]
    return data_found(rendering, counts, config)


def _pull_in_words(recipe: Recipe, steps: int) -> str:
    schedule = {key: value for key, value in recipe.training.items() if key in SCHEDULE}
    rates = planned_rates(SFTConfig(output_dir=recipe.run, use_cpu=True, **schedule), steps)
    return in_words(strength_of(recipe.implant.fade, rates), rates)


def _marked(data: DataSection, rendering: Rendering) -> list[tuple[str, bool]]:
    """The first example as the model will see it, in pieces, and whether each is trained on."""
    number, first = next(examples_of(data.train[0]))
    try:
        rendered = rendering.renderer.render(first)
    except NotUnderstood as problem:
        raise Refusal(f"{data.train[0].path}: line {number} {problem}") from None
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        if not pieces or pieces[-1][1] != (label != NOT_LEARNT):
            pieces.append(([], label != NOT_LEARNT))
        pieces[-1][0].append(token)
    return [(str(rendering.renderer.tokenizer.decode(piece)), trained) for piece, trained in pieces]
