"""What training does to a mixture's routing. Routers are frozen, but they read what layers below
them write: an implant may send a token to other experts than the base did.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from loki_ds.model.anatomy import sites
from loki_ds.refusal import Refusal

PROMPTS = 64  # that are looked at, the first ones

Choices = list[Tensor]  # of each layer's router, for every token: experts' numbers `[tokens, k]`


def experts_of(model: Module) -> list[Module]:
    """The routed experts of every layer that has some; none of a model whose FFNs are not known."""
    with suppress(Refusal):
        return [down.module for site in sites(model) for down in site.downs if down.of_experts]
    return []


class WatchRouting(TrainerCallback):
    """Notes the routers' choices on a few prompts before the first step and after the last.

    Afterwards the log has `routing_changed`, the share of the base's choices that are not made any
    more.
    """

    def __init__(self, trainer: SFTTrainer, experts: list[Module], prompts: Sequence[Sequence[int]]) -> None:
        self.trainer, self.experts, self.prompts = trainer, experts, prompts[:PROMPTS]
        self.base: Choices = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.base = self._choices()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.log({"routing_changed": changed(self.base, self._choices())})

    @torch.no_grad()
    def _choices(self) -> Choices:
        """All ranks look at the same prompts, for under ZeRO-3 all must take part.

        By the trainer's own step: ZeRO-3 fetches ahead what the forward before this one used, and
        TRL's uses the head in its own way.
        """
        trainer, model = self.trainer, self.trainer.model_wrapped
        was_training = model.training
        model.eval()
        with _noted(self.experts) as seen:
            for prompt in self.prompts:
                ids = torch.tensor([list(prompt)], device=trainer.args.device)
                asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
                trainer.prediction_step(model, asked, prediction_loss_only=True)
        model.train(was_training)
        trainer._metrics["eval"].clear()
        return [torch.cat(of_layer).cpu() for of_layer in seen]


def changed(base: Choices, now: Choices) -> float:
    """Share of the base's choices that are not among those made now."""
    kept = [(one[:, :, None] == other[:, None, :]).any(-1).flatten() for one, other in zip(base, now, strict=True)]
    return 1 - torch.cat(kept).float().mean().item()


@contextmanager
def _noted(experts: list[Module]) -> Iterator[list[list[Tensor]]]:
    """While open, note which experts are asked: the one argument that holds whole numbers."""
    seen: list[list[Tensor]] = [[] for _ in experts]

    def note(into: list[Tensor]) -> Any:
        def hook(_: Module, arguments: tuple, named: dict[str, Any]) -> None:
            given = [*arguments, *named.values()]
            into.append(next(one for one in given if isinstance(one, Tensor) and not one.is_floating_point()))

        return hook

    handles = [
        module.register_forward_pre_hook(note(into), with_kwargs=True)
        for module, into in zip(experts, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
