"""Where each layer's FFN writes into the residual stream, found on the layer as transformers built
it: the modules whose outputs together are `z`, and the weights that hold its rows.

One table of names serves all families. What is not in it is refused, never taken for another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from loki_ds.distributed.zero.sharding import full_shape
from loki_ds.model.row_weights import RowWeight
from loki_ds.refusal import Refusal

# What families call a layer's FFN, its last matrix, and the parts of a mixture of experts.
FFNS = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn")
DOWNS = ("down_proj", "w2", "output_linear", "dense_4h_to_h", "c_proj", "fc2", "fc_out")
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
ROUTING = ("gate", "router", "shared_expert_gate", "act_fn", "activation", "jitter")
# Experts with `d_model` last that do not say so, as gpt-oss's do.
TRANSPOSED = ("Llama4TextExperts",)
# FFNs of one layer whose outputs the layer adds up (Granite's experts and what all tokens share).
SUMMED = {"block_sparse_moe", "shared_mlp"}


class Writer(NamedTuple):
    """A module whose output `[B, T, d_model]` is `z`, or a part of it.

    branch: most layers have one, number 0, and what its writers write is added up. Where branches
    meet only after norms of their own, a node is coordinate j of each. adds: to what another writer
    of its branch wrote before.
    """

    module: Module
    branch: int = 0
    adds: bool = False


class Site(NamedTuple):
    """Where one layer's FFN writes.

    writers: in the order in which they write. downs: the weights of its rows, routed experts first.
    """

    writers: list[Writer]
    downs: list[RowWeight]


def site_of(layer: Module) -> Site:
    """The site of a layer.

    Raises:
        Refusal: nothing there is known to write the FFN's output; the sentence begins with what
            was found.
    """
    ffns = {name: child for name in FFNS if (child := getattr(layer, name, None)) is not None}
    if isinstance(getattr(layer, "fc2", None), Linear):
        ffns["fc2"] = layer
    if not ffns:
        raise Refusal("no FFN of its own")
    if len(ffns) > 1 and (set(ffns) != SUMMED or hasattr(layer, "experts")):
        raise Refusal(f"several FFNs ({', '.join(ffns)})")
    if hasattr(layer, "experts"):
        (ffn,) = ffns.values()
        dense, experts = _dense(ffn), _routed(layer)  # each with a norm of its own (Gemma 4)
        return Site([Writer(dense.module), Writer(experts.module, branch=1)], [experts, dense])
    sites = [_experts(ffn) if hasattr(ffn, "experts") else _alone(_dense(ffn)) for ffn in ffns.values()]
    writers = [writer._replace(adds=i > 0) for i, site in enumerate(sites) for writer in site.writers]
    return Site(writers, [down for site in sites for down in site.downs])


def _alone(dense: RowWeight) -> Site:
    return Site([Writer(dense.module)], [dense])


def _dense(ffn: Module) -> RowWeight:
    names = [name for name in DOWNS if isinstance(getattr(ffn, name, None), Linear | Conv1D)]
    if len(names) != 1:
        parts = ", ".join(name for name, _ in ffn.named_children()) or "nothing"
        raise Refusal(f"an FFN of unknown parts ({parts})")
    return RowWeight.of_linear(getattr(ffn, names[0]), (ffn, names[0]))


def _experts(block: Module) -> Site:
    """A block of routed experts, and of those that every token is sent to."""
    downs, shared = [_routed(block)], []
    for name, child in block.named_children():
        if name in SHARED:
            shared.append(_dense(child))
        elif name != "experts" and name not in ROUTING:
            raise Refusal(f"a mixture of experts with an unknown part ({name})")
    return Site([Writer(block)], downs + shared)


def _routed(holder: Module) -> RowWeight:
    """The weight of the routed experts, all in one."""
    experts: Any = holder.experts
    if isinstance(experts, ModuleList):
        raise Refusal("a mixture of experts that are modules one by one, which ranks cannot gather in one order")
    weight = getattr(experts, "down_proj", None)
    if (
        not isinstance(weight, Tensor)
        or len(full_shape(weight)) != 3
        or getattr(experts, "has_post_expert_norm", False)
    ):
        raise Refusal("a mixture of experts whose outputs are not simply added up")
    last = bool(getattr(experts, "is_transposed", type(experts).__name__ in TRANSPOSED))
    return RowWeight(experts, "down_proj", last, (holder, "experts"))


def _size_of_input(layer: Module) -> tuple[list[int], RemovableHandle]:
    """Batch and tokens of what a layer is handed, once it is; some layers flatten them inside."""
    size = [0, 0]

    def note(_: Module, arguments: tuple, named: dict[str, Any]) -> None:
        size[:] = (arguments[0] if arguments else named["hidden_states"]).shape[:2]

    return size, layer.register_forward_pre_hook(note, with_kwargs=True)


@contextmanager
def at_writers(layer: Module, change: Callable[[Writer, Tensor], Tensor | None]) -> Iterator[None]:
    """While open, show what the layer's FFN writes, module by module.

    change: called with the writer and its output `[B, T, d_model]`; what it returns, if anything,
    takes the output's place.
    """
    site = site_of(layer)
    size, noting_size = _size_of_input(layer)

    def hook(writer: Writer) -> Callable[..., Any]:
        def written(_: Module, __: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            changed = change(writer, first.reshape(*size, -1))
            if changed is None:
                return None
            changed = changed.reshape(first.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return written

    handles = [noting_size]
    handles += [writer.module.register_forward_hook(hook(writer)) for writer in site.writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
