"""TRL's trainer with three additions: labels may point to what the base predicts, the head is asked
for the learned tokens alone, and nothing goes on from a loss that is NaN or infinite.

What is rehearsed is learned by its divergence from the base. The model runs once for both: its head
is asked a second time for the rehearsed tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import Module
from transformers import Trainer
from trl import SFTTrainer
from trl.trainer import utils

from loki_ds.data.rendering import NOT_LEARNED
from loki_ds.implanting.divergence import divergence
from loki_ds.implanting.rehearsal_rows import Rehearsed, is_pointer, places_of
from loki_ds.implanting.watch import check_finite
from loki_ds.model.anatomy import final_states, logits_from
from loki_ds.model.replaced import replaced


class Rehearsing(Trainer):
    """What any trainer needs to rehearse; what is rehearsed, if anything, is given to it before it
    trains.
    """

    rehearsed: Rehearsed | None = None

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's own loss, and the weighed divergence where labels point to predictions.

        return_outputs: TRL runs the model once more for them.
        """
        rehearsed = self.rehearsed if self.rehearsed and (self.rehearsed.learned or not model.training) else None
        if rehearsed is None:
            with _label_only_head():
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        pointing = is_pointer(inputs["labels"])
        learned = inputs["labels"].masked_fill(pointing, NOT_LEARNED)
        with _label_only_head(), final_states(self._language_model(model)) as states:
            result: Any = super().compute_loss(model, {**inputs, "labels": learned}, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        apart, count = self._divergence(model, states[0], inputs["labels"], rehearsed), pointing[:, 1:].sum()
        self._note_divergence(model, apart, count)
        if num_items_in_batch is None:
            tokens = (learned[:, 1:] != NOT_LEARNED).sum()
            loss = (loss * tokens.clamp(min=1) + apart) / (tokens + count).clamp(min=1)
        else:  # scaled as transformers and TRL scale their own
            over = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss + apart * over / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _divergence(self, model: Module, states: Tensor, labels: Tensor, rehearsed: Rehearsed) -> Tensor:
        """Summed over the rehearsed tokens.

        A rank without any asks the head as well, for nothing: under ZeRO-3 all ranks must.
        """
        pointing = is_pointer(labels[:, 1:])
        asked = states[:, :-1][pointing] if pointing.any() else states[0, :1]
        logits = logits_from(self._language_model(model), asked)
        if not pointing.any():
            return logits.sum() * 0
        places = places_of(labels[:, 1:][pointing]).cpu()
        apart = divergence(logits, rehearsed.predictions.at(places, logits.device))
        return (apart * rehearsed.weights[places].to(logits.device)).sum()

    def _language_model(self, model: Module) -> Any:
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if isinstance(inner, PeftModel) else inner

    def _note_divergence(self, model: Module, apart: Tensor, count: Tensor) -> None:
        """Put the divergence into the log, the mean over the rehearsed tokens of all ranks."""
        total, tokens = self.accelerator.reduce(torch.stack([apart.detach().float(), count.float()]))
        if tokens > 0 and isinstance(self, SFTTrainer):
            self._metrics["train" if model.training else "eval"]["rehearsal_kl"].append((total / tokens).item())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if self.rehearsed is not None:
            self.measure_drift(self.rehearsed)
        return metrics

    def measure_drift(self, rehearsed: Rehearsed) -> None:
        """Mean divergence from the base on the rows that are measured, in nats a token; it goes to
        the log as `drift`. All ranks call it.
        """
        loader = self.get_eval_dataloader(rehearsed.measured)
        done = self.evaluation_loop(loader, "drift", prediction_loss_only=True, metric_key_prefix="drift")
        if isinstance(self, SFTTrainer):
            self._metrics["eval"].clear()  # of these rows, which TRL would put into the log as if held out
        self.log({"drift": float((done.metrics or {})["drift_loss"])})


class ImplantTrainer(Rehearsing, SFTTrainer):
    """TRL's trainer as recipes have it."""

    def compute_loss(self, model: Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            check_finite(result[0] if isinstance(result, tuple) else result, self, model, inputs)
        return result


def _label_only_head() -> AbstractContextManager:
    """While open, TRL's forward asks the head for the learned tokens alone on a processor, too.

    TRL does so where it has Triton. Elsewhere it scores every token and then leaves out all but the
    learned ones, because devices that compile would compile anew for every number of them. A
    processor compiles nothing, and of a small model with long prompts the head is half of a step.
    The name is TRL's own business: without it every token is scored, as TRL has it.
    """
    stock = getattr(utils, "_use_triton", None)
    if stock is None:
        return nullcontext()
    return replaced(utils, "_use_triton", lambda device: device.type == "cpu" or stock(device))
