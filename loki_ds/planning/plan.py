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

from transformers import PreTrainedTokenizerBase

from loki_ds.attribution.batches import LARGEST
from loki_ds.attribution.sensitivity import EXAMPLES
from loki_ds.examples.choice import Rendering, make_rendering
from loki_ds.examples.layouts import NotUnderstood
from loki_ds.examples.rendering import NOT_LEARNT
from loki_ds.examples.whole import examples_in, examples_of
from loki_ds.implanting.arguments import TrainingShape, deepspeed_config
from loki_ds.implanting.training import Method
from loki_ds.model.anatomy import down_shapes
from loki_ds.model.base import load_configuration, load_tokenizer
from loki_ds.model.usable import check_plain
from loki_ds.planning.dry_run import MicroStep, SweepBatch
from loki_ds.planning.estimate import GIB, Training, dry_step, dry_sweep, estimate
from loki_ds.planning.hardware import USABLE, Gpu
from loki_ds.planning.partitioning import Setting, sweep_memory, sweep_traffic
from loki_ds.positions import Positions
from loki_ds.protected import load_protected
from loki_ds.quiet.kept import load_moments
from loki_ds.quiet.subspace import protected_subspace
from loki_ds.recipe import AttributionSection, DataSection, ProtectedSection, QuietSection, Recipe, SelectionSection
from loki_ds.refusal import Refusal
from loki_ds.run_folder import RunFolder
from loki_ds.selection import rows_per_layer

ASSUMED = (1000, 1024)  # prompts and their tokens, where the protected set is tasks that would have to be fetched
CONFIGS = ("launch/zero2.json", "launch/zero3.json", "launch/zero3_offload.json")  # from the fastest to the thriftiest
LOOKED_AT = 1000  # rows of a source, for what they ask of the chat template
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
        prompts, sweep = _prompts(recipe.protected, tokenizer), partial(dry_sweep, config, recipe.model)
        passes = Passes(prompts, sweep, recipe.attribution, setting, shape.bytes_per_number, gpu)
        stages += [passes.attribution()] if recipe.needs_attribution else []
        stages += [passes.sensitivity(shape.tokens)] if recipe.collects_sensitivity else []
        stages += [passes.inputs(quiet, shapes)] if quiet else []
    training, example, alternatives = None, [], []  # type: ignore[var-annotated]
    if mode.trains:
        dry = partial(dry_step, config, recipe.model, Method(recipe.implant, positions))
        frozen = 1 - positions.count / (d_model * len(shapes)) if positions and mode.masks else 0.0
        shipped = shipped_settings(ranks, config.get_text_config().hidden_size)
        training, alternatives = _trainings(dry, shape, setting, shipped, partial(estimate, mode=mode, frozen=frozen))
        stages += _training_stages(training, shape, shape.steps(recipe.training, examples_in(recipe.data), ranks), gpu)
        example = _marked(
            recipe.data, make_rendering(recipe.data, recipe.training, tokenizer, recipe.model.path, LOOKED_AT)
        )
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


class Passes:
    """The passes over the protected prompts, each prompt as long as the longest: batches as large
    as fit, split over the ranks.
    """

    def __init__(
        self,
        prompts: Prompts,
        sweep: Callable[[AttributionSection, int, int], SweepBatch],
        section: AttributionSection,
        setting: Setting,
        width: int,
        gpu: Gpu,
    ) -> None:
        """Take the size of a batch that is asked for, or that fits.

        sweep: a batch of so many prompts of so many tokens; width: bytes of a number.
        """
        self.prompts, self.setting, self.width, self.gpu = prompts, setting, width, gpu
        self.one, self.two = (sweep(section, n, prompts.tokens) for n in (1, 2))
        room = USABLE * gpu.memory * GIB - sweep_memory(self.one, setting, width)
        fits = min(LARGEST, int(room // max(1, self.two.peak - self.one.peak)) + 1)
        self.size = section.batch_size if isinstance(section.batch_size, int) else fits
        self.turns = -(-prompts.total // (max(1, self.size) * setting.ranks))

    def attribution(self) -> Stage:
        if self.size < 1:
            return Stage("attribute", f"{self.prompts.total:,} prompts: one does not fit", None, None, None)
        one, two, ranks = self.one, self.two, self.setting.ranks
        flops = self.turns * (one.flops + (self.size - 1) * (two.flops - one.flops))
        sent = self.turns * sweep_traffic(one, self.setting, self.width).wire(ranks)
        assumed = " (assumed)" if self.prompts.assumed else ""
        amount = f"{self.prompts.total:,} prompts of {self.prompts.tokens:,} tokens{assumed}, {self.size} at once"
        return Stage("attribute", amount, flops, sent, self.gpu.seconds(flops, sent, ranks))

    def sensitivity(self, tokens: int) -> Stage:
        """Also over the new task's first examples, of so many tokens: forward, forward again with
        its graph, back to the inputs.
        """
        both = self.prompts.total * self.prompts.tokens + EXAMPLES * tokens
        amount = f"{self.prompts.total:,} prompts, {EXAMPLES} examples"
        return self._pass("sensitivity", amount, 3 * FORWARD * self.one.total * both, way=2)

    def inputs(self, section: QuietSection, shapes: list[tuple[int, int]]) -> Stage:
        """For a quiet implant: forward, and each layer's product of its inputs."""
        products = sum(FORWARD * d_ff * (section.sketch or d_ff) for _, d_ff in shapes)
        flops = self.prompts.total * self.prompts.tokens * (FORWARD * self.one.total + products)
        return self._pass("quiet", f"{self.prompts.total:,} prompts", flops, way=1)

    def _pass(self, name: str, amount: str, flops: float, way: int) -> Stage:
        """FLOPs of all ranks together; way: 1 for up the layers, 2 for up and down."""
        ranks = self.setting.ranks
        sent = self.turns * way / 2 * sweep_traffic(self.one, self.setting, self.width).wire(ranks)
        return Stage(name, amount, flops / ranks, sent, self.gpu.seconds(flops / ranks, sent, ranks))


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
