"""The parts of a causal language model, found on the model as transformers built it.

Knows where decoder layers sit (`sites` knows where they write) and how to run a model with its
layers emptied, so that everything around the layers (embedding scale, rotary tables per layer type,
masks, final norm, head, soft-capping) stays the model's own code. Copies nothing from any family.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn import Module
from transformers.modeling_outputs import BaseModelOutputWithPast

from loki_ds.model.ffn import Site, site_of
from loki_ds.model.replaced import replaced
from loki_ds.refusal import Refusal

LAYERS = ("layers", "h", "blocks")  # what families call their stack


def decoder_of(model: Any) -> Any:
    """The module that holds the layers and what is around them, without the head."""
    decoder = model.get_decoder()
    return model.model if decoder is model else decoder  # Llama 4's class names another part of itself


def layers_of(decoder: Module) -> list[Any]:
    """Under the name that the family has for them; none where there are none."""
    return list(next((layers for name in LAYERS if (layers := getattr(decoder, name, None)) is not None), ()))


def stack_of(model: Module) -> list[Module]:
    """The decoder layers from the bottom to the top, whatever they hold.

    Raises:
        Refusal: the model has no list of layers.
    """
    layers = layers_of(decoder_of(model))
    if not layers:
        raise Refusal(
            f"{type(model).__name__}: no decoder layers found; loki-ds needs a decoder-only transformer with `layers`"
        )
    return layers


def decoder_layers(model: Module) -> list[Module]:
    """The decoder layers from the bottom to the top, of which each writes by rows that are known.

    Raises:
        Refusal: the model has no list of layers, or one whose rows are not known.
    """
    layers = stack_of(model)
    for i, layer in enumerate(layers):
        try:
            site_of(layer)
        except Refusal as unknown:
            raise Refusal(
                f"{type(model).__name__}: layer {i} has {unknown}; loki-ds does not know which rows it writes by"
            ) from None
    return layers


def sites(model: Module) -> list[Site]:
    """Where each layer's FFN writes, from the bottom to the top."""
    return [site_of(layer) for layer in decoder_layers(model)]


def has_experts(model: Module) -> bool:
    return any(down.of_experts for site in sites(model) for down in site.downs)


def parts_around_layers(model: Module) -> list[Module]:
    """What the decoder uses below and above its layers: embedding, rotary tables, final norm."""
    decoder = decoder_of(model)
    stacks = [getattr(decoder, name, None) for name in LAYERS]
    return [child for child in decoder.children() if not any(child is stack for stack in stacks)]


@dataclass
class EmptiedRun:
    """What a model's own forward handed to each of its layers."""

    hidden_states: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def emptied(layers: list[Module], output: Tensor | None = None) -> Iterator[EmptiedRun]:
    """While open, layers only note their arguments and return their input, or `output` if given."""
    run = EmptiedRun()

    def stand_in_for(layer: Module) -> Callable[..., Tensor]:
        names = list(signature(type(layer).forward).parameters)[2:]  # after itself and the hidden states

        def stand_in(hidden_states: Tensor, *others: Any, **arguments: Any) -> Tensor:
            run.hidden_states.append(hidden_states)
            run.arguments.append({**dict(zip(names, others, strict=False)), **arguments})
            return hidden_states if output is None else output

        return stand_in

    for layer in layers:
        layer.forward = stand_in_for(layer)
    try:
        yield run
    finally:
        for layer in layers:
            del layer.forward


def calls_of_layers(model: Module, layers: list[Module], ids: Tensor) -> EmptiedRun:
    """What the model's own forward hands to each layer for `ids [B, T]`."""
    decoder = decoder_of(model)
    with emptied(layers):
        decoder(input_ids=ids[:1, :1], use_cache=False)  # a rotary table that grew for a longer prompt shrinks again
    with emptied(layers) as run:
        decoder(input_ids=ids, use_cache=False)
    return run


def logits_above(model: Module, layers: list[Module], rows: Tensor) -> Tensor:
    """The model's final norm, head and logit scaling on one-token sequences `[N, d_model]`."""
    with emptied(layers, output=rows[:, None]):
        return model(inputs_embeds=rows[:, None].detach(), use_cache=False).logits.squeeze(1)


@contextmanager
def final_states(model: Module) -> Iterator[list[Tensor]]:
    """While open, note what the decoder leaves for the head, `[B, T, d_model]`, call by call."""
    seen: list[Tensor] = []
    decoder = decoder_of(model)
    with decoder.register_forward_hook(lambda _, __, out: seen.append(out[0])):
        yield seen


class _Left(BaseModelOutputWithPast):
    """What a decoder left, of any class: what it does not hold (router logits) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def logits_from(model: Module, states: Tensor) -> Tensor:
    """The model's own head and logit scaling on what its decoder left, `[N, d_model]` to `[N, V]`.

    As its class has it, whatever was put in the place of its `forward`.
    """
    decoder = decoder_of(model)
    decoder.forward = lambda *_, **__: _Left(last_hidden_state=states[None])
    try:
        return type(model).forward(model, inputs_embeds=states[None].detach(), use_cache=False).logits[0]
    finally:
        del decoder.forward


MASKED_ATTENTION = ("eager", "sdpa")  # transformers' implementations that honour a mask of one's own


def check_attention(model: Module) -> None:
    """Refuse a model whose attention would ignore that rows must not see one another."""
    name = decoder_of(model).config._attn_implementation
    if name not in MASKED_ATTENTION:
        raise Refusal(
            f"{type(model).__name__}: attention {name!r} takes no 4-D mask; load the model with "
            f"{' or '.join(MASKED_ATTENTION)}"
        )


def attention_implementation(model: Module, name: str) -> AbstractContextManager:
    """Run the model's attention by another of transformers' implementations while open."""
    return replaced(decoder_of(model).config, "_attn_implementation", name)
