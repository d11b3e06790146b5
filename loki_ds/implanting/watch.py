"""Stops a training whose numbers go wrong, on all ranks, at that step, with the layer it came from.

A loss is looked at before its gradient is taken, so no bad step is made and the last checkpoint
stays good. Gradients are looked at where they arrive, on the device; ranks exchange one number a
step. In float16 an infinite gradient is not an error: DeepSpeed's loss scale skips that step.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loki_ds.distributed.ranks import all_gather, world_size
from loki_ds.model.anatomy import decoder_layers
from loki_ds.refusal import Refusal


def check_finite(loss: Tensor, trainer: Trainer, model: Module, inputs: dict[str, Any]) -> None:
    """Refuse, on all ranks, to go on from a loss that is NaN or infinite on any of them."""
    if _on_any_rank(~torch.isfinite(loss.detach()).all()):
        layer = _first_wrong_layer(decoder_layers(trainer.accelerator.unwrap_model(model)), model, inputs)
        raise Refusal(
            f"training: the loss is NaN or infinite at step {trainer.state.global_step + 1}, {layer}; "
            f"{_advice(trainer.args)}"
        )


@torch.no_grad()
def _first_wrong_layer(layers: Sequence[Module], model: Module, inputs: dict[str, Any]) -> str:
    """The lowest layer whose output is wrong on a rank, in words, by a forward on all ranks."""
    wrong: list[Tensor] = []
    read = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(lambda _, __, out: wrong.append(_is_wrong(out))))
        model(**read)
    lowest = min(all_gather(next((i for i, flag in enumerate(wrong) if bool(flag)), len(layers))))
    if lowest < len(layers):
        return f"first in the output of layer {lowest}"
    return "first above the layers (final norm, head or loss)"


class WatchGradients(TrainerCallback):
    """Refuses to go on from a gradient that is NaN or infinite, and names the tensor."""

    def __init__(self, model: Module) -> None:
        self.wrong: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._watch(name))

    def _watch(self, name: str) -> Any:
        def look(gradient: Tensor) -> None:
            ends = torch.stack(gradient.aminmax())  # in one pass, and a NaN is both of them
            flag = ~torch.isfinite(ends).all()
            self.wrong[name] = flag | self.wrong[name] if name in self.wrong else flag

        return look

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        flags, self.wrong = self.wrong, {}
        if args.fp16 or not _on_any_rank(
            torch.stack(list(flags.values())).any() if flags else torch.zeros((), device=args.device)
        ):
            return
        named = [name for names in all_gather([name for name, flag in flags.items() if bool(flag)]) for name in names]
        raise Refusal(
            f"training: the gradient of {named[0]} is NaN or infinite at step {state.global_step}; {_advice(args)}"
        )


class TokensPerSecond(TrainerCallback):
    """Adds `tokens_per_second` (all ranks together, since the last entry) to the log."""

    def __init__(self) -> None:
        self.before = (0.0, time.monotonic())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seen = next((entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry), 0.0)
        self.before = (seen, time.monotonic())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "num_tokens" in logs and "loss" in logs:
            (tokens, then), now = self.before, time.monotonic()
            self.before = (logs["num_tokens"], now)
            state.log_history[-1]["tokens_per_second"] = round((logs["num_tokens"] - tokens) / max(now - then, 1e-9), 1)


def _on_any_rank(flag: Tensor) -> bool:
    if world_size() > 1:
        number = flag.float()
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return bool(number)
    return bool(flag)


def _is_wrong(out: Any) -> Tensor:
    return ~torch.isfinite(out[0] if isinstance(out, tuple) else out).all()


def _advice(args: TrainingArguments) -> str:
    return f"a lower training.learning_rate may help; checkpoints in {args.output_dir} are from before it"
