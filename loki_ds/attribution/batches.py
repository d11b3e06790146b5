"""Which prompts are swept together, how many at a time, and the loop over them on all ranks.

Prompts that begin alike go together (their common beginning is computed once), others by length
(little padding). Batches start from what memory was measured to hold and are halved when the device
runs out nevertheless. Every rank takes part in every turn.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loki_ds.attribution.layer_call import shared_length
from loki_ds.attribution.rope import LengthClass, any_length, length_class
from loki_ds.attribution.self_check import check_family
from loki_ds.attribution.sweep import Sweep, Swept
from loki_ds.distributed.device import available_memory, peak_memory
from loki_ds.distributed.ranks import all_gather, rank, world_size
from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.recipe.sections import AttributionSection
from loki_ds.refusal import Refusal

log = logging.getLogger(__name__)

LARGEST = 64  # prompts in a batch chosen by memory: beyond it the device is busy anyway
PADDING = 0.2  # of a batch's tokens, at most: a prompt that needs more begins the next one
FEW = 64  # tokens of padding that never matter
IDLE = [[0]]  # what a rank sweeps when it has no prompts left, because every gather needs all ranks
FREE_SHARE = 0.8  # of the free memory that batches may fill when the recipe names no budget
NOT_EVEN_ONE = "{}: a single prompt does not fit the device's memory; use shorter prompts or more ranks"


class NoRoom(Exception):
    """A batch is too much for this rank's memory; it took part in every gather all the same."""


def attribute(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    steps: int = 7,
    rule: str = "right",
    target: str = "probability",
    multiply_by_value: bool = True,
    batch_size: int = 8,
) -> Tensor:
    """Integrated-Gradients score of every node for every prompt, at the prompt's last token.

    With a model sharded by ZeRO-3 all ranks pass the same prompts, share them and get all scores.

    Args:
        model: a causal language model of transformers, in eval mode, whole or sharded by ZeRO-3.
        prompts: token ids, any lengths from 1.
        steps: points of the quadrature of the path from 0 to the node's value.
        rule: how they lie and weigh (`rules.quadrature`).
        target: `probability` or `logit` of the model's own next token.
        multiply_by_value: True for Integrated Gradients, False for the paper's eq. 4 as printed.
        batch_size: prompts swept together; fewer when the device's memory is not enough for them.

    Returns:
        Scores `[prompts, layers, d_model]` on the CPU, float32 (float64 for a float64 model).

    Raises:
        Refusal: the model is of a kind that the sweep does not get right (`self_check`), or one
            prompt alone does not fit.
    """
    check_family(model)
    sweep = Sweep(model, steps=steps, rule=rule, target=target, multiply_by_value=multiply_by_value)
    split_over_ranks = is_sharded(model)
    planned = batches(prompts, batch_size, length_class(model.config))
    mine = [
        (i, score.clone())  # a view would be sent with its batch's whole storage
        for indices, swept in sweep_batches(sweep, prompts, planned, split_over_ranks)
        for i, score in zip(indices, swept.scores, strict=True)
    ]
    everyone = all_gather(mine) if split_over_ranks else [mine]
    scores = dict(scored for of_rank in everyone for scored in of_rank)
    return torch.stack([scores[i] for i in range(len(prompts))])


def batches(prompts: Sequence[Sequence[int]], size: int, class_of: LengthClass = any_length) -> list[list[int]]:
    """Indices of prompts in batches of at most `size` and little padding, the most work first:
    memory fails early, not late, and batches that ranks sweep side by side take about as long.

    class_of: of lengths; prompts of different classes never go together.
    """
    classes: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        classes.setdefault(class_of(len(prompt)), []).append(i)
    cut = [batch for members in classes.values() for batch in _of_one_class(members, prompts, size)]
    return sorted(cut, key=lambda batch: (-_work([prompts[i] for i in batch]), batch))


def _of_one_class(members: list[int], prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    alone: list[int] = []
    cut: list[list[int]] = []
    for family in _families(members, prompts):
        if len(family) == 1:
            alone += family
        else:
            cut += _cut(family, prompts, size)
    return cut + _cut(alone, prompts, size)


def _families(members: list[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices by shared beginnings worth computing once; such prompts are lexical neighbors."""
    families: list[list[int]] = []
    for i in sorted(members, key=lambda i: (list(prompts[i]), i)):
        if families and shared_length([prompts[families[-1][0]], prompts[i]]):
            families[-1].append(i)
        else:
            families.append([i])
    return families


def _cut(indices: list[int], prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    cut: list[list[int]] = []
    for i in sorted(indices, key=lambda i: (-len(prompts[i]), i)):
        if cut and len(cut[-1]) < size and _is_dense([prompts[j] for j in [*cut[-1], i]]):
            cut[-1].append(i)
        else:
            cut.append([i])
    return cut


def _work(together: Sequence[Sequence[int]]) -> int:
    """Tokens that a batch computes: its common beginning once, then every prompt at full length."""
    shared = shared_length(together)
    return shared + len(together) * (max(map(len, together)) - shared)


def _is_dense(together: Sequence[Sequence[int]]) -> bool:
    """Whether little of what a batch computes is padding."""
    longest = max(map(len, together))
    return sum(longest - len(prompt) for prompt in together) <= max(PADDING * _work(together), FEW)


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


def affordable_batch(
    work: Callable[[Sequence[Sequence[int]]], object],
    prompts: Sequence[Sequence[int]],
    budget: int,
    class_of: LengthClass = any_length,
    stage: str = "attribute",
) -> int:
    """How many prompts a batch may hold in `budget` bytes on every rank: a power of two, from what
    one and two prompts took.

    Measured on the two longest prompts that go together, so the others stay below. work: what is
    done with a batch; all ranks do it together.

    Raises:
        Refusal: `work` has no room for one prompt (`NoRoom`); of two it has none, and one goes.
    """
    in_twos = batches(prompts, 2, class_of)
    pair = [prompts[i] for i in next((batch for batch in in_twos if len(batch) == 2), in_twos[0])]
    _taken(work, pair[:1])  # the libraries' own first-time memory is not the batch's
    one = _taken(work, pair[:1])
    if one is None:
        raise Refusal(NOT_EVEN_ONE.format(stage))
    two = _taken(work, pair)
    if two is None:
        log.info("%s: one prompt takes %.2f GiB, and two do not fit: 1 in a batch", stage, one / 2**30)
        return 1
    each = max(two - one, one // 4, 1)  # a measured difference can be smaller than noise
    fits = min(all_gather(max(1, 1 + (budget - one) // each)))
    size = 1 << (min(fits, LARGEST).bit_length() - 1)
    took, more = one / 2**30, each / 2**30
    log.info("%s: one prompt takes %.2f GiB, each further one %.2f: %d in a batch", stage, took, more, size)
    return size


def _taken(work: Callable[[Sequence[Sequence[int]]], object], prompts: Sequence[Sequence[int]]) -> int | None:
    """Bytes at the peak of a batch; None where it was too much for a rank."""
    try:
        peak: int | None = peak_memory(lambda: work(prompts))
    except NoRoom:
        peak = None
    return None if None in all_gather(peak) else peak


def sweep_batches(
    sweep: Sweep, prompts: Sequence[Sequence[int]], planned: Sequence[list[int]], split_over_ranks: bool = True
) -> Iterator[tuple[list[int], Swept]]:
    """Sweep each planned batch once; yields a batch's indices and result on the rank that made it.

    When a device's memory runs out, all ranks halve all later batches, and the log says so.

    split_over_ranks: the ranks share the batches; False has this rank do all (an unsharded model).

    Raises:
        Refusal: a single prompt does not fit the device's memory.
    """
    mine = deque(planned[rank() :: world_size()] if split_over_ranks else planned)
    everyone = all_gather if split_over_ranks else _only_this_rank
    while any(everyone(bool(mine))):
        batch = mine.popleft() if mine else []
        swept = sweep.attempt([prompts[i] for i in batch] or IDLE)
        failed = [size for size in everyone(0 if swept else max(len(batch), 1)) if size]
        if batch and swept:
            yield batch, swept
        if not failed:
            continue
        if min(failed) == 1:
            raise Refusal(NOT_EVEN_ONE.format("attribution"))
        size = min(failed) // 2
        log.warning("attribute: out of memory at %d prompts in a batch; going on with %d", min(failed), size)
        waiting = [*([batch] if batch and not swept else []), *mine]
        mine = deque(whole[start : start + size] for whole in waiting for start in range(0, len(whole), size))


def rank_batches(planned: Sequence[list[int]]) -> Iterator[list[int]]:
    """This rank's batch of every turn, empty when none is left, as every gather needs all ranks."""
    for first in range(0, len(planned), world_size()):
        mine = first + rank()
        yield planned[mine] if mine < len(planned) else []


def _only_this_rank(value: object) -> list:
    return [value]
