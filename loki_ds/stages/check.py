"""Stage 0: all that the later stages rest on, looked at before the first product, and made once.

The base's headers, the tokenizer, the examples as tokens, the tasks, the disk. No weights are read
into memory. What would fail later fails here.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from loki_ds import ranks
from loki_ds.examples.choice import Rendering, make_rendering
from loki_ds.examples.whole import Kept, needs_of
from loki_ds.export.products import Base
from loki_ds.implanting.supported import check_dtype
from loki_ds.model.base import check_attention_installed, load_configuration, load_tokenizer, locate_model
from loki_ds.model.files import model_files, open_weights
from loki_ds.model.usable import check_usable
from loki_ds.modes import Mode
from loki_ds.recipe import ModelSection, Recipe
from loki_ds.refusal import Refusal
from loki_ds.retention.statistics import least_margin
from loki_ds.run_folder import RunFolder, weights_digest
from loki_ds.stages.inputs import rendering_inputs
from loki_ds.tasks import TaskFound, look_at_tasks

GIB = 2**30
NONE = Dataset.from_list([])

Findings = list[tuple[str, str]]  # what was looked at, what was found


@dataclass(frozen=True)
class Checked:
    """What the check made for the later stages.

    examples, heldout: rows of `input_ids` and `labels`; empty and None in a run that does not
    train. findings: of the same on every rank.
    """

    base: Base
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering | None
    examples: Dataset
    heldout: Dataset | None
    findings: Findings


def check(recipe: Recipe, folder: RunFolder, arguments: SFTConfig) -> Checked:
    """Look at base and data. All ranks call it.

    arguments: TRL's settings, themselves checked when they were made.

    Raises:
        Refusal: the first thing that a later stage could not work with.
    """
    section = recipe.model
    check_attention_installed(section.attention)
    base = _locate_base(section)
    config = load_configuration(base.folder, section.trust_remote_code)
    findings = ranks.on_first_rank(lambda: _look_at_base(recipe, base, config, folder, arguments))
    tokenizer = load_tokenizer(base.folder, section.trust_remote_code)
    rendering, examples, heldout = None, NONE, None
    if recipe.implant.kind.trains:
        needed = ranks.on_each_node(lambda: needs_of(recipe.data.sources))
        rendering = make_rendering(needed, recipe.training, tokenizer, base.folder)
        kept = Kept(folder.examples)
        findings += _render(recipe, rendering, kept, config.get_text_config().vocab_size)
        examples, heldout = kept.load(recipe.data, arguments.seed)
    return Checked(base, config, tokenizer, rendering, examples, heldout, findings)


def check_retention(recipe: Recipe, folder: RunFolder) -> Findings:
    """Look at the tasks, unless their result is there. All ranks call it.

    Raises:
        Refusal: a task that lm-eval does not know, that gives no number per document, or that runs
            code and may not.
    """
    return ranks.on_first_rank(lambda: _look_at_tasks(recipe, folder))


def as_table(findings: Findings) -> Table:
    """For the terminal."""
    table = Table(title="check", show_header=False)
    for looked_at, found in findings:
        table.add_row(looked_at, found)
    return table


def _locate_base(section: ModelSection) -> Base:
    """The base model on every node, the same on all."""
    folder = ranks.on_each_node(lambda: locate_model(section))
    digest = ranks.on_each_node(lambda: weights_digest(folder))
    ranks.check_same(f"the weights of {section.path}", digest)
    return Base(folder, digest, section)


def _look_at_base(
    recipe: Recipe, base: Base, config: PreTrainedConfig, folder: RunFolder, arguments: SFTConfig
) -> Findings:
    check_usable(base.folder, config, recipe.model.trust_remote_code, recipe.implant.kind.rewrites_model)
    check_dtype(base.folder, recipe.model.dtype, recipe.implant, arguments)
    with open_weights(base.folder) as weights:
        files = model_files(base.folder, weights)
        dtypes = sorted({str(weights.dtype_of(name)).removeprefix("torch.") for name in weights.names})
    size = sum((base.folder / file).stat().st_size for file in files)
    room = 0 if folder.model.exists() else size * (1 + whole_models_kept(recipe.implant.kind, arguments))
    check_room(folder.root, room)
    return [
        ("base", f"{base.folder}: {config.model_type}, {size / GIB:.2f} GiB, stored in {', '.join(dtypes)}"),
        ("run folder", f"{folder.root}: takes at least {room / GIB:.2f} of {_free(folder.root) / GIB:.1f} GiB free"),
    ]


def whole_models_kept(mode: Mode, arguments: SFTConfig) -> int:
    """How many checkpoints with a whole model will lie there at once, at least; what optimizers
    keep beside it is not counted.
    """
    if arguments.save_strategy == "no" or mode.leaves != "weights":
        return 0
    return arguments.save_total_limit or 1


def check_room(folder: Path, wanted: int) -> None:
    """Refuse a disk without `wanted` bytes free for the result and its checkpoints."""
    if (free := _free(folder)) < wanted:
        raise Refusal(
            f"{folder}: {free / GIB:.2f} GiB are free there, the run takes at least {wanted / GIB:.2f}; make room, or "
            "use run=FOLDER"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _render(recipe: Recipe, rendering: Rendering, kept: Kept, vocabulary: int) -> Findings:
    """The examples as tokens, made once on each node and mapped by its ranks."""
    inputs = rendering_inputs(recipe.data, rendering)
    counts = ranks.on_each_node(
        lambda: kept.render(recipe.data, rendering.renderer, rendering.loss.cut, vocabulary, inputs)
    )
    return [*(("template", line) for line in rendering.said), *(("data", one.said()) for one in counts)]


def _look_at_tasks(recipe: Recipe, folder: RunFolder) -> Findings:
    section, done = recipe.retention, folder.inputs_of("retain")
    asked = json.loads(json.dumps(section.model_dump(exclude={"processes"})))
    if done is not None and all(done.get(key) == value for key, value in asked.items()):
        return []
    findings: Findings = []
    for group in section.groups:
        found = look_at_tasks(group.tasks, section.include_path, section.allow_code_execution, "retention")
        findings += [("task", _in_words(task, group.limit, section.margin)) for task in found]
    return findings


def _in_words(task: TaskFound, limit: int | None, margin: float) -> str:
    """A task, its documents, and whether they can show at all that the task was kept."""
    asked = sum(min(limit or count, count) for count in task.documents.values())
    if len(task.documents) > 1:
        return f"{task.name}: {asked:,} documents in {len(task.documents)} subtasks, by {task.metrics[0]}"
    said = f"{task.name}: {asked:,} documents by {task.metrics[0]}"
    if (least := least_margin(asked)) > margin:
        seen = f"from {least:.3f} on, half of them right and none changed"
        said += f", too few to show it kept at retention.margin {margin:g} ({seen})"
    return said
