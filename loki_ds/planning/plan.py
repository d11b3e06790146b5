"""What a recipe would do and need on so many ranks of a GPU, from the model's configuration alone:
no weights are loaded, and nothing is drawn here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from loki_ds.attribution.batches import LARGEST
from loki_ds.attribution.sensitivity import EXAMPLES
from loki_ds.implanting.arguments import TrainingShape, deepspeed_config
from loki_ds.implanting.data import Examples, load_sample, tokens_and_loss
from loki_ds.implanting.training import Method
from loki_ds.model.anatomy import down_shapes
from loki_ds.model.base import load_configuration, load_tokenizer
from loki_ds.planning.dry_run import SweepBatch
from loki_ds.planning.estimate import GIB, Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import USABLE, Gpu
from loki_ds.planning.partitioning import Setting, sweep_memory, sweep_traffic
from loki_ds.positions import Positions
from loki_ds.protected import load_protected
from loki_ds.quiet.kept import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe import ProtectedSection, QuietSection, Recipe, SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder
from loki_ds.selection import rows_per_layer

ASSUMED = (1000, 1024)  # prompts and their tokens, where the protected set is tasks that would have to be fetched
CONFIGS = ("launch/zero2.json", "launch/zero3.json", "launch/zero3_offload.json")  # from the fastest to the thriftiest
FORWARD = 2  # FLOPs of a parameter for each token


class Stage(NamedTuple):
    """One stage of the work: how much there is of it, FLOPs and bytes sent of one rank, and
    seconds.
    """

    name: str
    amount: str
    flops: float | None
    sent: float | None
    seconds: float | None


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


class Prompts(NamedTuple):
    """The protected prompts: how many, the longest one's tokens, and whether that is assumed."""

    total: int
    tokens: int
    assumed: bool = False


@dataclass(frozen=True)
class Plan:
    """All of it. rows: that train, by layer (one number for all layers where they are chosen over
    the whole model); example: pieces of text, and whether they are trained on.
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
    example: list[tuple[str, bool]]


def make_plan(recipe: Recipe, gpu: Gpu, ranks: int) -> Plan:
    """Everything `loki-ds plan` shows.

    Raises:
        Refusal: the model's configuration, the data or DeepSpeed's file cannot be used.
    """
    remote, mode = recipe.model.trust_remote_code, recipe.implant.kind
    config = load_configuration(recipe.model.path, remote)
    tokenizer, shapes = load_tokenizer(recipe.model.path, remote), down_shapes(config)
    d_model, d_ff = shapes[0]
    positions = planned_positions(recipe.selection, shapes) if recipe.changes_rows else None
    deepspeed = deepspeed_config(recipe.deepspeed, recipe.implant)
    setting = Setting.of(deepspeed, ranks, config.get_text_config().hidden_size)
    stages = list(_stages_before_training(recipe, config, tokenizer, setting, gpu))
    training, alternatives, example, trainable = None, [], [], None
    if mode.trains:
        shape = TrainingShape.of(recipe.training, recipe.model.dtype, recipe.sequence_parallel)
        frozen = 1 - positions.count / (d_model * len(shapes)) if positions and mode.masks else 0.0
        method = Method(recipe.implant, positions)
        steps = [dry_step(config, recipe.model, method, replace(shape, checkpointing=twice)) for twice in (False, True)]
        training = estimate(steps[shape.checkpointing], setting, shape, mode, frozen)
        alternatives = [
            Alternative(
                file, step.checkpointing, estimate(step, Setting.of(other, ranks, d_model), shape, mode, frozen)
            )
            for step in steps
            for file, other in shipped_configurations()
        ]
        trainable = positions.count * d_ff if positions and mode.masks else training.trained
        sample = load_sample(recipe.data, bool(recipe.training.get("assistant_only_loss", False)))
        stages += _training_stages(training, shape, shape.steps(recipe.training, sample.total, ranks), gpu)
        example = _marked(sample, tokenizer, recipe.training)
    return Plan(
        model=recipe.model.path,
        run=recipe.run,
        gpu=gpu,
        setting=setting,
        shapes=shapes,
        rows=[len(rows) for rows in positions.rows] if positions else None,
        over_all_layers=recipe.selection.positions is None and recipe.selection.strategy.startswith("global"),
        trainable=trainable,
        quiet=_quieted(recipe.implant.quiet, RunFolder(recipe.run), shapes) if recipe.implant.quiet else None,
        training=training,
        stages=stages,
        alternatives=alternatives,
        configured=deepspeed is not None,
        example=example,
    )


def planned_positions(section: SelectionSection, shapes: list[tuple[int, int]]) -> Positions:
    """As many rows in each layer as there will be: those of a file, or any by the quota."""
    if section.positions is not None:
        positions = Positions.load(Path(section.positions))
        positions.check_fits(shapes, section.positions)
        return positions
    return Positions([list(range(rows_per_layer(section.quota, d_model))) for d_model, _ in shapes])


def shipped_configurations() -> Iterator[tuple[str, dict]]:
    """DeepSpeed's configurations beside the recipes: each file and what it says.

    Raises:
        Refusal: they are not where they are looked for.
    """
    for name in CONFIGS:
        if not Path(name).exists():
            raise Refusal(f"{name}: not found from {Path.cwd()}; type the command in the project's folder")
        yield name, json.loads(Path(name).read_text(encoding="utf-8"))


# --- the stages -----------------------------------------------------------------------------------


def _stages_before_training(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, setting: Setting, gpu: Gpu
) -> Iterator[Stage]:
    """Attribution, sensitivity, and the protected inputs of a quiet implant, as the recipe asks
    for.
    """
    if recipe.protected is None or not (
        recipe.needs_attribution or recipe.collects_sensitivity or recipe.implant.quiet
    ):
        return
    prompts = _prompts(recipe.protected, tokenizer)
    batches = [dry_sweep(config, recipe.model, recipe.attribution, n, prompts.tokens) for n in (1, 2)]
    width, shapes = TrainingShape.of({}, recipe.model.dtype).bytes_per_number, down_shapes(config)
    asked = recipe.attribution.batch_size
    size = asked if isinstance(asked, int) else _affordable(batches, setting, width, gpu)
    if recipe.needs_attribution:
        yield _attribution(prompts, size, batches, setting, width, gpu)
    tokens, moved = prompts.total * prompts.tokens, width * batches[0].gathered * (setting.stage == 3)
    turns = -(-prompts.total // (max(size, 1) * setting.ranks))
    if recipe.collects_sensitivity:
        shape = TrainingShape.of(recipe.training, recipe.model.dtype)
        both = tokens + EXAMPLES * shape.tokens
        amount = f"{prompts.total:,} prompts, {EXAMPLES} examples"
        # forward, forward again with its graph, back to the inputs
        yield _pass("sensitivity", amount, 3 * FORWARD * batches[0].total * both, 2 * turns * moved, setting, gpu)
    if recipe.implant.quiet:
        products = sum(FORWARD * d_ff * (recipe.implant.quiet.sketch or d_ff) for _, d_ff in shapes)
        flops = tokens * (FORWARD * batches[0].total + products)
        yield _pass("quiet", f"{prompts.total:,} prompts", flops, turns * moved / 2, setting, gpu)


def _pass(name: str, amount: str, flops: float, gathered: float, setting: Setting, gpu: Gpu) -> Stage:
    """A pass over prompts whose FLOPs the ranks share, each of which gathers so many bytes."""
    of_rank, sent = flops / setting.ranks, gathered * (setting.ranks - 1) / setting.ranks
    return Stage(name, amount, of_rank, sent, gpu.seconds(of_rank, sent, setting.ranks))


def _affordable(batches: list[SweepBatch], setting: Setting, width: int, gpu: Gpu) -> int:
    """Prompts of a batch that fits; below 1 when not even one does."""
    one, two = batches
    room = USABLE * gpu.memory * GIB - sweep_memory(one, setting, width)
    return min(LARGEST, int(room // max(1, two.peak - one.peak)) + 1)


def _attribution(
    prompts: Prompts, size: int, batches: list[SweepBatch], setting: Setting, width: int, gpu: Gpu
) -> Stage:
    """Batches as large as fit, every prompt as long as the longest."""
    if size < 1:
        return Stage("attribute", f"{prompts.total:,} prompts: one does not fit", None, None, None)
    one, two = batches
    turns = -(-prompts.total // (size * setting.ranks))
    flops = turns * (one.flops + (size - 1) * (two.flops - one.flops))
    sent = turns * sweep_traffic(one, setting, width).wire(setting.ranks)
    assumed = " (assumed)" if prompts.assumed else ""
    amount = f"{prompts.total:,} prompts of {prompts.tokens:,} tokens{assumed}, {size} at once"
    return Stage("attribute", amount, flops, sent, gpu.seconds(flops, sent, setting.ranks))


def _training_stages(training: Training, shape: TrainingShape, steps: int, gpu: Gpu) -> list[Stage]:
    seconds, sent = training.seconds(gpu), training.traffic.wire(training.setting.ranks)
    batch = f"{shape.accumulation} x {shape.sequences} sequences of {shape.tokens:,} tokens"
    return [
        Stage("implant, a step", batch, training.flops, sent, seconds),
        Stage("implant", f"{steps:,} steps", training.flops * steps, sent * steps, seconds * steps),
    ]


def _prompts(section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """As they are, or assumed where they are not at hand."""
    if section.prompts is None:
        return Prompts(*ASSUMED, assumed=True)
    tokens = load_protected(section, tokenizer).tokens
    return Prompts(len(tokens), max(map(len, tokens)))


# --- the rest -------------------------------------------------------------------------------------


def _quieted(section: QuietSection, folder: RunFolder, shapes: list[tuple[int, int]]) -> Quieted:
    moments, d_ff, room = folder.quiet / "moments.safetensors", shapes[0][1], None
    if moments.exists():
        room = [protected_subspace(moment, section.energy).room for moment in load_moments(moments)]
    return Quieted(section.energy, room, 4 * d_ff * d_ff * len(shapes) / 10)


def _marked(sample: Examples, tokenizer: PreTrainedTokenizerBase, training: dict) -> list[tuple[str, bool]]:
    """The first example as the model will see it, in pieces, and whether each is trained on."""
    tokens, learnt = tokens_and_loss(sample.first, tokenizer, training)
    pieces: list[tuple[list[int], bool]] = []
    for token, trained in zip(tokens, map(bool, learnt), strict=True):
        if not pieces or pieces[-1][1] != trained:
            pieces.append(([], trained))
        pieces[-1][0].append(token)
    return [(str(tokenizer.decode(piece)), trained) for piece, trained in pieces]
