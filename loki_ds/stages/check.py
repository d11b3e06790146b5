"""Stage 0: all that the later stages rest on, looked at before the first product, and made once.

The base's headers, the tokenizer, the examples as tokens, the disk; the tasks are looked at beside
their evaluation (`retain.check_retention`). No weights are read into memory. What would fail later
fails here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from loki_ds.checking.base import BaseFound, data_found, look_at_base, max_tokens
from loki_ds.checking.disk import check_room, room_wanted
from loki_ds.checking.findings import Findings
from loki_ds.checking.selection import check_selection
from loki_ds.data.dataset import Counts, Kept
from loki_ds.data.protected import load_protected
from loki_ds.data.render_settings import Rendering, make_rendering
from loki_ds.data.templates import Needs
from loki_ds.disk.files import weights_digest
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed import ranks
from loki_ds.implanting.deepspeed_checks import check_dtype
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.model.base import Base, check_attention_installed, load_configuration, load_tokenizer, locate_model
from loki_ds.recipe.sections import ModelSection, ProtectedSection, Recipe
from loki_ds.stages.fingerprints import data_inputs, rendering_inputs

NONE = Dataset.from_list([])


@dataclass(frozen=True)
class Checked:
    """What the check made for the later stages.

    examples, heldout: rows of `input_ids` and `labels`; empty and None in a run that does not
    train. down_shapes: `[d_model, width]` of each layer's rows, of a run that is confined to some.
    findings: of the same on every rank.
    """

    base: Base
    config: PreTrainedConfig
    down_shapes: list[tuple[int, int]]
    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering | None
    examples: Dataset
    heldout: Dataset | None
    findings: Findings


def check(recipe: Recipe, folder: RunFolder, arguments: SFTConfig, shared: bool) -> Checked:
    """Look at base and data. All ranks call it.

    arguments: TRL's settings, themselves checked when they were made; shared: whether all ranks see
    the same run folder.

    Raises:
        Refusal: the first thing that a later stage could not work with.
    """
    section = recipe.model
    check_attention_installed(section.attention)
    base = _locate_base(section)
    config = load_configuration(base.folder, section.trust_remote_code)
    found = ranks.on_first_rank(lambda: _look_at_base(recipe, base, config, arguments))
    findings: Findings = [("base", found.said())]
    tokenizer = load_tokenizer(base.folder, section.trust_remote_code)
    rendering, examples, heldout = None, NONE, None
    if recipe.changes_rows:
        ranks.on_first_rank(lambda: check_selection(recipe.selection, found.down_shapes))
    if recipe.needs_attribution and recipe.protected and recipe.protected.prompts:
        findings += ranks.on_first_rank(lambda: _look_at_protected(recipe.protected, tokenizer, config))
    if recipe.implant.kind.trains:
        kept = Kept(folder.examples)
        rendering = make_rendering(_needs(recipe, kept), recipe.training, tokenizer, base.folder)
        findings += _render(recipe, kept, rendering, config, shared)
        examples, heldout = kept.load(recipe.data, arguments.seed)
        if recipe.rehearsed not in (None, recipe.protected):
            findings += ranks.on_first_rank(lambda: _look_at_texts(recipe.rehearsed, tokenizer))
    findings += ranks.on_first_rank(lambda: _look_at_room(recipe, folder, found, arguments, len(examples)))
    return Checked(base, config, found.down_shapes, tokenizer, rendering, examples, heldout, findings)


def _locate_base(section: ModelSection) -> Base:
    """The base model on every node, the same on all."""
    folder = ranks.on_each_node(lambda: locate_model(section))
    digest = ranks.on_each_node(lambda: weights_digest(folder))
    ranks.check_same(f"the weights of {section.path}", digest)
    return Base(folder, digest, section)


def _look_at_base(recipe: Recipe, base: Base, config: PreTrainedConfig, arguments: SFTConfig) -> BaseFound:
    found = look_at_base(recipe, base.folder, config)
    check_dtype(base.folder, recipe.model.dtype, recipe.implant, arguments)
    return found


def _needs(recipe: Recipe, kept: Kept) -> tuple[Needs, bool]:
    """What the examples ask of a template."""
    return ranks.on_each_node(lambda: kept.needs(recipe.data, data_inputs(recipe.data)))


def _render(recipe: Recipe, kept: Kept, rendering: Rendering, config: PreTrainedConfig, shared: bool) -> Findings:
    """The examples as tokens, made once in every run folder and mapped by the ranks that see it."""
    inputs, vocabulary = rendering_inputs(recipe.data, rendering), config.get_text_config().vocab_size
    once: Callable[[Callable[[], list[Counts]]], list[Counts]] = ranks.on_first_rank if shared else ranks.on_each_node
    counts = once(lambda: kept.render(recipe.data, rendering, vocabulary, inputs))
    return data_found(rendering, counts, config)


def _look_at_protected(
    section: ProtectedSection | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> Findings:
    """A file of prompts; those of lm-eval's tasks take longer to make, and are looked at when they
    are.
    """
    if section is None:
        return []
    tokens, positions = load_protected(section, tokenizer).tokens, max_tokens(config)
    longest = max(map(len, tokens))
    said = f"{section.prompts}: {len(tokens):,} prompts, the longest {longest:,} tokens"
    if positions is not None and longest > positions:
        said += f"; the model was made for {positions:,}"
    return [("protected", said)]


def _look_at_texts(rehearsed: ProtectedSection | None, tokenizer: PreTrainedTokenizerBase) -> Findings:
    if rehearsed is None:
        return []
    return [("rehearsal", f"{rehearsed.prompts}: {len(load_protected(rehearsed, tokenizer).prompts):,} texts")]


def _look_at_room(recipe: Recipe, folder: RunFolder, base: BaseFound, arguments: SFTConfig, examples: int) -> Findings:
    shape = TrainingShape.of(recipe.training, recipe.model.dtype, recipe.sequence_parallel)
    steps = shape.steps(recipe.training, examples, ranks.world_size()) if examples else 0
    said = check_room(folder.root, room_wanted(recipe, folder, base, arguments, steps))
    if steps and arguments.save_strategy == "no":
        said += "; no checkpoints, so a killed training starts anew (training.save_strategy)"
    return [("run folder", said)]
