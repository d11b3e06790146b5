"""Stage 0: all that the later stages rest on, looked at before the first product, and made once.

The trainer's settings, the base's headers, the tokenizer, the examples as tokens, the disk; the
tasks are looked at beside their evaluation (`retain.check_retention`). No weights are read into
memory. What would fail later fails here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from loki_ds.checking.base import data_found, look_at_base
from loki_ds.checking.disk import Room
from loki_ds.checking.findings import Findings
from loki_ds.checking.selection import check_selection
from loki_ds.checking.versions import installed, newer_than_tested
from loki_ds.data.dataset import Counts, RenderedFolder
from loki_ds.data.protected import ProtectedSet, load_protected
from loki_ds.data.render_settings import Rendering, make_rendering
from loki_ds.disk.files import weights_digest
from loki_ds.distributed import ranks
from loki_ds.implanting.boundary import Boundary
from loki_ds.implanting.checkpoints import Checkpoint, check_on_nodes, newest_checkpoint
from loki_ds.implanting.deepspeed_checks import check_dtype
from loki_ds.implanting.trl_config import training_arguments
from loki_ds.model.base import (
    Base,
    check_attention_installed,
    check_padding,
    load_configuration,
    load_tokenizer,
    locate_model,
    max_tokens,
    stop_tokens,
)
from loki_ds.recipe.sections import DataSection, ModelSection, ProtectedSection
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block
from loki_ds.stages.fingerprints import Fingerprints, data_fingerprint, rendering_fingerprint
from loki_ds.stages.run import Run

NONE = Dataset.from_list([])


@dataclass
class Checked:
    """What the check found and made for the later stages.

    arguments: TRL's settings, for these ranks; checkpoint: what a training resumes from, if
    anything. examples, heldout: rows of `input_ids` and `labels`; empty and None in a run that does
    not train. blocks: what rows are chosen from, in a run that is confined to
    some. protected_section: where the protected prompts are. findings: of the same on every rank.
    """

    arguments: SFTConfig
    checkpoint: Checkpoint | None
    base: Base
    config: PreTrainedConfig
    blocks: list[Block]
    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering | None
    examples: Dataset
    heldout: Dataset | None
    protected_section: ProtectedSection | None
    fingerprints: Fingerprints
    findings: Findings
    boundary: Boundary | None = None  # counter-examples, where they are made

    @property
    def template(self) -> str | None:
        """The chat template that leaves with the model, where it is not the base's own."""
        return self.rendering.exported_template if self.rendering else None

    @property
    def trained_tokenizer(self) -> PreTrainedTokenizerBase:
        """With what the examples ask of it, where there are any."""
        return self.rendering.renderer.tokenizer if self.rendering else self.tokenizer

    @cached_property
    def protected(self) -> ProtectedSet:
        if self.protected_section is None:
            raise Refusal("the recipe has no section 'protected', which this stage needs")
        return load_protected(self.protected_section, self.tokenizer)


def check(run: Run) -> Checked:
    """Look at settings, base and data. All ranks call it.

    Raises:
        Refusal: the first thing that a later stage could not work with.
    """
    recipe, section = run.recipe, run.recipe.model
    arguments, checkpoint = _settings(run)
    check_attention_installed(section.attention)
    base = _locate_base(section)
    config = load_configuration(base.folder, section.trust_remote_code)
    base_found = ranks.on_first_rank(
        lambda: look_at_base(section, recipe.implant, recipe.selection, recipe.needs_attribution, base.folder, config)
    )
    ranks.on_first_rank(lambda: check_dtype(base.folder, section.dtype, recipe.implant))
    newer = newer_than_tested(installed())
    findings: Findings = [("newer than tested", ", ".join(newer))] if newer else []
    findings.append(("base", base_found.said()))
    tokenizer = load_tokenizer(base.folder, section.trust_remote_code)
    check_padding(tokenizer, config, base.folder)
    if recipe.changes_rows:
        ranks.on_first_rank(lambda: check_selection(recipe.selection, base_found.blocks))
    if recipe.needs_attribution:
        findings += ranks.on_first_rank(lambda: _look_at_prompts("protected", recipe.protected, tokenizer, config))
    rendering, examples, heldout = None, NONE, None
    if recipe.implant.kind.trains:
        rendered = RenderedFolder(run.folder.examples)
        rendering = _rendering(recipe.data, recipe.training, rendered, tokenizer, base)
        check_padding(rendering.renderer.tokenizer, config, "training.pad_token")
        findings += _render(recipe.data, rendered, rendering, base.folder, config, run.shared.by_all)
        examples, heldout = rendered.load(recipe.data, arguments.seed)
        _check_enough(len(examples), arguments)
    for texts in recipe.rehearsed.values():
        if texts != recipe.protected or not recipe.needs_attribution:  # else it is looked at above
            look = partial(_look_at_prompts, "rehearsal", texts, tokenizer, config)
            findings += ranks.on_first_rank(look)
    room = Room(recipe, base_found, arguments)
    findings.append(ranks.on_first_rank(lambda: room.look_at(run.folder, len(examples), ranks.world_size())))
    return Checked(
        arguments=arguments,
        checkpoint=checkpoint,
        base=base,
        config=config,
        blocks=base_found.blocks,
        tokenizer=tokenizer,
        rendering=rendering,
        examples=examples,
        heldout=heldout,
        protected_section=recipe.protected,
        fingerprints=Fingerprints(recipe, base),
        findings=findings,
    )


def _check_enough(examples: int, arguments: SFTConfig) -> None:
    """Refuse examples that make no whole batch where only whole ones train."""
    together = arguments.per_device_train_batch_size * ranks.world_size()
    if arguments.dataloader_drop_last and not arguments.packing and examples < together:
        raise Refusal(
            f"data.train has {examples:,} examples, a batch of all ranks takes {together:,}, and "
            "training.dataloader_drop_last leaves out what is no whole batch: nothing would train"
        )


def _settings(run: Run) -> tuple[SFTConfig, Checkpoint | None]:
    """TRL's settings as these ranks train by them, and the checkpoint that they go on from."""
    folder = run.folder
    trained = ranks.on_first_rank(lambda: folder.has("implant"))
    checkpoint = None if trained else ranks.on_first_rank(lambda: newest_checkpoint(folder.checkpoints))
    arguments = training_arguments(run.recipe, folder.checkpoints, checkpoint)
    if not run.shared.by_all:
        check_on_nodes(checkpoint, arguments, folder.root)
    return arguments, checkpoint


def _locate_base(section: ModelSection) -> Base:
    """The base model on every node, the same on all."""
    folder = ranks.on_each_node(lambda: locate_model(section))
    digest = ranks.on_each_node(lambda: weights_digest(folder))
    ranks.check_same(f"the weights of {section.path}", digest)
    return Base(folder, digest, section)


def _rendering(
    data: DataSection, training: dict, rendered: RenderedFolder, tokenizer: PreTrainedTokenizerBase, base: Base
) -> Rendering:
    """How the examples become tokens, by what they ask of a template."""
    needs = ranks.on_each_node(lambda: rendered.needs(data, data_fingerprint(data)))
    return make_rendering(needs, training, tokenizer, base.folder, data.thoughts == "drop")


def _render(
    data: DataSection,
    rendered: RenderedFolder,
    rendering: Rendering,
    base: Path,
    config: PreTrainedConfig,
    shared: bool,
) -> Findings:
    """The examples as tokens, made once in every run folder and mapped by the ranks that see it."""
    inputs, vocabulary = rendering_fingerprint(data, rendering), config.get_text_config().vocab_size
    once: Callable[[Callable[[], list[Counts]]], list[Counts]] = ranks.on_first_rank if shared else ranks.on_each_node
    counts = once(lambda: rendered.render(data, rendering, vocabulary, inputs))
    return data_found(rendering, counts, config, stop_tokens(base, config))


def _look_at_prompts(
    name: str, section: ProtectedSection | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> Findings:
    """A file's prompts; those of lm-eval's tasks take longer, and are looked at when made."""
    if section is None or section.prompts is None:
        return []
    tokens, most = load_protected(section, tokenizer).tokens, max_tokens(config)
    longest = max(map(len, tokens))
    said = f"{section.prompts}: {len(tokens):,} prompts, the longest {longest:,} tokens"
    if most is not None and longest > most:
        said += f"; the model was made for {most:,}"
    return [(name, said)]
