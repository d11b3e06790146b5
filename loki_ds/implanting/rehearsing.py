"""Training with rehearsal: where a label points to an answer of the base, the loss is the
divergence from it.

The model runs once for both: its head is asked a second time for the rehearsed tokens alone.
"""

import logging
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn import Module

from loki_ds.data.rendering import NOT_LEARNT
from loki_ds.implanting.divergence import Answers, divergence
from loki_ds.implanting.learnt import LearntTokensTrainer
from loki_ds.implanting.rehearsal_rows import is_pointer, places_of
from loki_ds.model.anatomy import final_states, logits_from

log = logging.getLogger(__name__)


class Rehearsed(NamedTuple):
    """The base's answers that labels point to, and rows of texts that are never trained on, whose
    drift is measured.

    learnt: whether any row that trains points to an answer. stop_at_drift: where training ends, in
    nats a token (None: never).
    """

    answers: Answers
    measured: Dataset
    learnt: bool
    stop_at_drift: float | None = None


class RehearsingTrainer(LearntTokensTrainer):
    """TRL's trainer; what is rehearsed, if anything, is given to it before it trains."""

    rehearsed: Rehearsed | None = None

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if self.rehearsed is None or (model.training and not self.rehearsed.learnt):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        pointing = is_pointer(labels)
        learnt = labels.masked_fill(pointing, NOT_LEARNT)
        with final_states(self._language_model(model)) as states:
            found = super().compute_loss(model, {**inputs, "labels": learnt}, return_outputs, num_items_in_batch)
        loss, *outputs = found if return_outputs else (found,)
        apart = self._divergence(model, states[0], labels, self.rehearsed.answers)
        count = pointing[:, 1:].sum()
        if num_items_in_batch is None:
            own = (learnt[:, 1:] != NOT_LEARNT).sum()
            loss = (loss * own.clamp(min=1) + apart) / (own + count).clamp(min=1)
        else:  # scaled as TRL scales its own
            over = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss + apart * over / num_items_in_batch
        self._note(model, apart, count)
        return (loss, *outputs) if return_outputs else loss

    def _divergence(self, model: Module, states: Tensor, labels: Tensor, answers: Answers) -> Tensor:
        """Summed over the rehearsed tokens.

        A rank without any asks the head as well, for nothing: under ZeRO-3 all ranks must.
        """
        pointing = is_pointer(labels[:, 1:])
        asked = states[:, :-1][pointing] if pointing.any() else states[0, :1]
        logits = logits_from(self._language_model(model), asked)
        if not pointing.any():
            return logits.sum() * 0
        places = places_of(labels[:, 1:][pointing]).cpu()
        return divergence(logits, answers.at(places, logits.device)).sum()

    def _language_model(self, model: Module) -> Any:
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    def _note(self, model: Module, apart: Tensor, count: Tensor) -> None:
        """In the log, the mean over the rehearsed tokens of all ranks."""
        total, tokens = self.accelerator.reduce(torch.stack([apart.detach().float(), count.float()]))
        if tokens > 0:
            self._metrics["train" if model.training else "eval"]["rehearsal_kl"].append((total / tokens).item())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if self.rehearsed is not None:
            drift = self.measure_drift(self.rehearsed)
            if self.rehearsed.stop_at_drift is not None and drift > self.rehearsed.stop_at_drift:
                log.info("implant: the drift is %.3g nats a token, training ends", drift)
                self.control.should_training_stop = True
        return metrics

    def measure_drift(self, rehearsed: Rehearsed) -> float:
        """Mean divergence from the base on the rows that are measured, in nats a token; it goes to
        the log as `drift`. All ranks call it.
        """
        loader = self.get_eval_dataloader(rehearsed.measured)
        done = self.evaluation_loop(loader, "drift", prediction_loss_only=True, metric_key_prefix="drift")
        drift = float((done.metrics or {})["drift_loss"])
        self.log({"drift": drift})
        return drift
