"""How many prompts go together: the recipe's number, or what fits into its memory budget."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig

from loki_ds.attribution.batches import affordable_batch, batches
from loki_ds.attribution.rope import LengthClass, length_class
from loki_ds.distributed.device import available_memory
from loki_ds.recipe.sections import AttributionSection

FREE_SHARE = 0.8  # of the free memory that batches may fill when the recipe names no budget


def batch_size(
    section: AttributionSection,
    work: Callable[[Sequence[Sequence[int]]], object],
    prompts: Sequence[Sequence[int]],
    class_of: LengthClass,
    stage: str = "attribute",
) -> int:
    """For `auto`, measured.

    work: what will be done with each batch; all ranks call it together. class_of: of lengths
    (`attribution.rope`). stage: whose, for the log.
    """
    if section.batch_size != "auto":
        return section.batch_size
    budget = int(section.memory_gib * 2**30) if section.memory_gib else int(FREE_SHARE * available_memory())
    return affordable_batch(work, prompts, budget, class_of, stage)


def measured_batches(
    section: AttributionSection,
    work: Callable[[Sequence[Sequence[int]]], object],
    prompts: Sequence[Sequence[int]],
    config: PreTrainedConfig,
    stage: str,
) -> list[list[int]]:
    """Batches of indices into the prompts, as large as `batch_size` says; prompts whose lengths ask
    the model of this configuration for other rotary tables never go together.
    """
    together = length_class(config)
    return batches(prompts, batch_size(section, work, prompts, together, stage), together)
