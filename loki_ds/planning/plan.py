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

from loki_ds.examples.choice import Rendering, make_rendering
from loki_ds.examples.rendering import NOT_LEARNT
from loki_ds.examples.turns import NotUnderstood
from loki_ds.examples.whole import examples_in, examples_of, needs_of
from loki_ds.implanting.arguments import TrainingShape, deepspeed_config
from loki_ds.implanting.training import Method
from loki_ds.model.anatomy import down_shapes
from loki_ds.model.base import load_configuration, load_tokenizer
from loki_ds.model.usable import check_plain
from loki_ds.planning.dry_run import MicroStep
from loki_ds.planning.estimate import Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import Gpu
from loki_ds.planning.partitioning import Setting
from loki_ds.planning.passes import Passes, Stage, prompts_of, training_stages
from loki_ds.positions import Positions
from loki_ds.quiet.kept import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe import DataSection, QuietSection, Recipe, SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder
from loki_ds.selection import rows_per_layer

CONFIGS = ("launch/zero2.json", "launch/zero3.json", "launch/zero3_offload.json")  # from the fastest to the thriftiest
LOOKED_AT = 1000  # rows of a source, for what they ask of the chat template


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
    the whole model); template: what was decided of it, in sentences; example: pieces of text, and
    whether they are trained on.
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
    template: list[str]
    example: list[tuple[str, bool]]


def make_plan(recipe: Recipe, gpu: Gpu, ranks: int) -> Plan:
    """Everything `loki-ds plan` shows.

    Raises:
        Refusal: the model's configuration, the data or DeepSpeed's file cannot be used.
    """
    remote, mode = recipe.model.trust_remote_code, recipe.implant.kind
    config = load_configuration(recipe.model.path, remote)
    check_plain(recipe.model.path, config)
    tokenizer, shapes = load_tokenizer(recipe.model.path, remote), down_shapes(config)
    d_model, d_ff = shapes[0]
    positions = planned_positions(recipe.selection, shapes) if recipe.changes_rows else None
    deepspeed = deepspeed_config(recipe.deepspeed, recipe.implant)
    setting = Setting.of(deepspeed, ranks, config.get_text_config().hidden_size)
    shape = TrainingShape.of(recipe.training, recipe.model.dtype, recipe.sequence_parallel)
    stages: list[Stage] = []
    quiet = recipe.implant.quiet
    if recipe.protected is not None and (recipe.needs_attribution or recipe.collects_sensitivity or quiet):
        prompts, sweep = prompts_of(recipe.protected, tokenizer), partial(dry_sweep, config, recipe.model)
        passes = Passes(prompts, sweep, recipe.attribution, setting, shape.bytes_per_number, gpu)
        stages += [passes.attribution()] if recipe.needs_attribution else []
        stages += [passes.sensitivity(shape.tokens)] if recipe.collects_sensitivity else []
        stages += [passes.inputs(quiet, shapes)] if quiet else []
    training, template, example, alternatives = None, [], [], []  # type: ignore[var-annotated]
    if mode.trains:
        dry = partial(dry_step, config, recipe.model, Method(recipe.implant, positions))
        frozen = 1 - positions.count / (d_model * len(shapes)) if positions and mode.masks else 0.0
        shipped = shipped_settings(ranks, config.get_text_config().hidden_size)
        training, alternatives = _trainings(dry, shape, setting, shipped, partial(estimate, mode=mode, frozen=frozen))
        stages += training_stages(training, shape, shape.steps(recipe.training, examples_in(recipe.data), ranks), gpu)
        needed = needs_of(recipe.data.sources, LOOKED_AT)
        rendering = make_rendering(needed, recipe.training, tokenizer, recipe.model.path)
        template, example = rendering.said, _marked(recipe.data, rendering)
    return Plan(
        model=recipe.model.path,
        run=recipe.run,
        gpu=gpu,
        setting=setting,
        shapes=shapes,
        rows=[len(rows) for rows in positions.rows] if positions else None,
        over_all_layers=recipe.selection.positions is None and recipe.selection.strategy.startswith("global"),
        trainable=positions.count * d_ff if positions and mode.masks else training.trained if training else None,
        quiet=_quieted(quiet, RunFolder(recipe.run), shapes) if quiet else None,
        training=training,
        stages=stages,
        alternatives=alternatives,
        configured=deepspeed is not None,
        template=template,
        example=example,
    )


def planned_positions(section: SelectionSection, shapes: list[tuple[int, int]]) -> Positions:
    """As many rows in each layer as there will be: those of a file, or any by the quota."""
    if section.positions is not None:
        positions = Positions.load(Path(section.positions))
        positions.check_fits(shapes, section.positions)
        return positions
    return Positions([list(range(rows_per_layer(section.quota, d_model))) for d_model, _ in shapes])


def shipped_settings(ranks: int, hidden_size: int) -> Iterator[tuple[str, Setting]]:
    """DeepSpeed's configurations beside the recipes: each file and what it means.

    Raises:
        Refusal: they are not where they are looked for.
    """
    for name in CONFIGS:
        if not Path(name).exists():
            raise Refusal(f"{name}: not found from {Path.cwd()}; type the command in the project's folder")
        yield name, Setting.of(json.loads(Path(name).read_text(encoding="utf-8")), ranks, hidden_size)


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
