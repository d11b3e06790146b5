"""The parts of a causal language model that attribution works on, found on the model as
transformers built it.

Knows where decoder layers and down-projections sit and how to run a model with its layers emptied,
so that everything around the layers (embedding scale, rotary tables per layer type, masks, final
norm, head, soft-capping) stays the model's own code. Copies nothing from any family.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from loki_ds.refusal import Refusal


def decoder_layers(model: Module) -> list[Module]:
    """The decoder layers from the bottom to the top.

    Raises:
        Refusal: the model has no list of layers with a dense `mlp.down_proj` in each.
    """
    layers: list[Any] = list(getattr(model.get_decoder(), "layers", ()))  # type: ignore[operator]
    name = type(model).__name__
    if not layers:
        raise Refusal(f"{name}: no decoder layers found; loki-ds needs a decoder-only transformer with `layers`")
    for i, layer in enumerate(layers):
        mlp: Any = getattr(layer, "mlp", None)
        if not isinstance(getattr(mlp, "down_proj", None), Linear):
            raise Refusal(
                f"{name}: layer {i} has {'a mixture of experts' if _has_experts(layer) else 'no dense FFN'}; loki-ds "
                "attributes and trains rows of a dense `mlp.down_proj` only"
            )
        if _has_experts(layer):
            raise Refusal(
                f"{name}: layer {i} has a mixture of experts beside its mlp.down_proj; loki-ds attributes and trains "
                "rows of layers without one"
            )
        if mlp.down_proj.bias is not None:
            raise Refusal(f"{name}: layer {i}'s mlp.down_proj has a bias; a node would no longer be one row's output")
    return layers


def _has_experts(layer: Any) -> bool:
    return any(hasattr(part, "experts") for part in layer.children()) or hasattr(layer, "experts")


def down_projection(layer: Any) -> Linear:
    """The layer's `W_down`, weight `[d_model, d_ff]`."""
    return layer.mlp.down_proj


@contextmanager
def down_projection_calls(layer: Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, note what the layer's `W_down` receives and what it writes, call by call."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = down_projection(layer).register_forward_hook(
        lambda _, received, written: seen.append((received[0], written))
    )
    try:
        yield seen
    finally:
        handle.remove()


def replace_down_projection(layer: Any, module: Linear) -> None:
    """Put another module in the place of the layer's `W_down`."""
    layer.mlp.down_proj = module


def down_shapes(config: PreTrainedConfig) -> list[tuple[int, int]]:
    """`[d_model, d_ff]` of each layer's `W_down`, from a model's configuration alone."""
    text = config.get_text_config()
    return [(text.hidden_size, text.intermediate_size)] * text.num_hidden_layers


def down_weights(model: Module) -> list[Tensor]:
    """`W_down` of every layer."""
    return [down_projection(layer).weight for layer in decoder_layers(model)]


def parts_around_layers(model: Module) -> list[Module]:
    """What the decoder itself uses below and above its layers: embedding, rotary tables, final
    norm.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    return [child for child in decoder.children() if child is not decoder.layers]


@dataclass
class EmptiedRun:
    """What a model's own forward handed to each of its layers."""

    hidden_states: list[Tensor] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def emptied(layers: list[Module], output: Tensor | None = None) -> Iterator[EmptiedRun]:
    """While open, layers compute nothing: they note their arguments and return their input, or
    `output` if given.
    """
    run = EmptiedRun()

    def stand_in(hidden_states: Tensor, *others: Any, **arguments: Any) -> Tensor:
        run.hidden_states.append(hidden_states)
        without_names = {f"argument {i}": other for i, other in enumerate(others, start=2) if other is not None}
        run.arguments.append({**arguments, **without_names})
        return hidden_states if output is None else output

    for layer in layers:
        layer.forward = stand_in
    try:
        yield run
    finally:
        for layer in layers:
            del layer.forward


def calls_of_layers(model: Module, layers: list[Module], ids: Tensor) -> EmptiedRun:
    """What the model's own forward hands to each layer for `ids [B, T]`."""
    decoder = model.get_decoder()  # type: ignore[operator]
    with emptied(layers):
        decoder(input_ids=ids[:1, :1], use_cache=False)  # a rotary table that grew for a longer prompt shrinks again
    with emptied(layers) as run:
        decoder(input_ids=ids, use_cache=False)
    return run


def logits_above(model: Module, layers: list[Module], rows: Tensor) -> Tensor:
    """The model's own final norm, head and logit scaling on rows `[N, d_model]`, each a sequence of
    one token.
    """
    with emptied(layers, output=rows[:, None]):
        return model(inputs_embeds=rows[:, None].detach(), use_cache=False).logits[:, 0]


@contextmanager
def final_states(model: Module) -> Iterator[list[Tensor]]:
    """While open, note what the decoder leaves for the head, `[B, T, d_model]`, call by call."""
    seen: list[Tensor] = []
    decoder = model.get_decoder()  # type: ignore[operator]
    handle = decoder.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    try:
        yield seen
    finally:
        handle.remove()


def logits_from(model: Module, states: Tensor) -> Tensor:
    """The model's own head and logit scaling on what its decoder left, `[N, d_model]` to `[N, V]`.

    As its class has it, whatever was put in the place of its `forward`.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    decoder.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=states[None])
    try:
        return type(model).forward(model, inputs_embeds=states[None].detach(), use_cache=False).logits[0]
    finally:
        del decoder.forward


MASKED_ATTENTION = ("eager", "sdpa")  # transformers' implementations that honour a mask of one's own


def check_attention(model: Module) -> None:
    """Refuse a model whose attention would ignore that rows must not see one another."""
    name = model.get_decoder().config._attn_implementation  # type: ignore[operator]
    if name not in MASKED_ATTENTION:
        raise Refusal(
            f"{type(model).__name__}: attention {name!r} takes no 4-D mask; load the model with "
            f"{' or '.join(MASKED_ATTENTION)}"
        )


@contextmanager
def attention_implementation(model: Module, name: str) -> Iterator[None]:
    """Run the model's attention by another of transformers' implementations while open."""
    config = model.get_decoder().config  # type: ignore[operator]
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
