"""How much each stage does on a rank: the passes over the protected prompts, and the training."""

from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from loki_ds.attribution.batches import LARGEST
from loki_ds.checking.findings import GIB
from loki_ds.data.protected import load_protected
from loki_ds.implanting.trl_config import TrainingShape
from loki_ds.planning.dry_run import SweepBatch
from loki_ds.planning.estimate import Training
from loki_ds.planning.hardware import USABLE, Gpu
from loki_ds.planning.partitioning import Setting, sweep_memory, sweep_traffic
from loki_ds.recipe.sections import AttributionSection, ProtectedSection

ASSUMED = (1000, 1024)  # prompts and their tokens, where the protected set is tasks that would have to be fetched
FORWARD = 2  # FLOPs of a parameter for each token


class Stage(NamedTuple):
    """One stage of the work: how much there is, FLOPs and bytes sent of one rank, and seconds."""

    name: str
    amount: str
    flops: float | None
    sent: float | None
    seconds: float | None


class Prompts(NamedTuple):
    """The protected prompts: how many, the longest one's tokens, and whether that is assumed."""

    total: int
    tokens: int
    assumed: bool = False


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
        bytes_per_number: int,
        gpu: Gpu,
    ) -> None:
        """Take the size of a batch that is asked for, or that fits.

        sweep: a batch of so many prompts of so many tokens.
        """
        self.prompts, self.setting, self.bytes_per_number, self.gpu = prompts, setting, bytes_per_number, gpu
        self.one, self.two = (sweep(section, n, prompts.tokens) for n in (1, 2))
        spare = USABLE * gpu.memory * GIB - sweep_memory(self.one, setting, bytes_per_number)
        fits = min(LARGEST, int(spare // max(1, self.two.peak - self.one.peak)) + 1)
        self.size = section.batch_size if isinstance(section.batch_size, int) else fits
        self.rank_batches = -(-prompts.total // (max(1, self.size) * setting.ranks))

    def attribution(self) -> Stage:
        if self.size < 1:
            return Stage("attribute", f"{self.prompts.total:,} prompts: one does not fit", None, None, None)
        ranks = self.setting.ranks
        flops = self.rank_batches * (self.one.flops + (self.size - 1) * (self.two.flops - self.one.flops))
        sent = self.rank_batches * sweep_traffic(self.one, self.setting, self.bytes_per_number).wire(ranks)
        assumed = " (assumed)" if self.prompts.assumed else ""
        amount = f"{self.prompts.total:,} prompts of {self.prompts.tokens:,} tokens{assumed}, {self.size} at once"
        return Stage("attribute", amount, flops, sent, self.gpu.seconds(flops, sent, ranks))

    def rehearsal(self, name: str, times: int = 1) -> Stage:
        """Forward, so many times: the base is asked."""
        ranks = self.setting.ranks
        flops = times * FORWARD * self.one.total * self.prompts.total * self.prompts.tokens / ranks
        swept = sweep_traffic(self.one, self.setting, self.bytes_per_number).wire(ranks)  # up the layers and down
        sent = self.rank_batches * times / 2 * swept
        return Stage(
            "rehearse", f"{self.prompts.total:,} prompts ({name})", flops, sent, self.gpu.seconds(flops, sent, ranks)
        )


def training_stages(training: Training, shape: TrainingShape, steps: int, gpu: Gpu) -> list[Stage]:
    seconds, sent = training.seconds(gpu), training.traffic.wire(training.setting.ranks)
    batch = f"{shape.accumulation} x {shape.sequences} sequences of {shape.tokens:,} tokens"
    return [
        Stage("implant, a step", batch, training.flops, sent, seconds),
        Stage("implant", f"{steps:,} steps", training.flops * steps, sent * steps, seconds * steps),
    ]


def prompts_of(section: ProtectedSection, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """As they are, or assumed where they are not at hand."""
    if section.prompts is None:
        return Prompts(*ASSUMED, assumed=True)
    tokens = load_protected(section, tokenizer).tokens
    return Prompts(len(tokens), max(map(len, tokens)))
