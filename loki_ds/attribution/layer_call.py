"""How the sweep calls one decoder layer: with which masks, positions and keys and values, for each
kind of input it carries.

A batch of B prompts, the longest with T tokens, goes through a layer in up to three calls: the
**shared** tokens that all prompts begin with (C of them, one row for the whole batch), the **rest**
of each prompt's tokens before the last (up to position P = T - 1), and the **probes** that all sit
at a prompt's last position. Each call sees the keys and values that the calls before it left.

Knows what transformers hands to a layer. Knows nothing of interventions, targets or gradients.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from loki_ds.refusal import Refusal

WORTH_SHARING = 32  # tokens
CACHE_NAMES = ("cache", "past_key_values", "layer_past")  # by version of transformers and family
# Gemma 4 also hands `shared_kv_states` to layers that share nothing; `self_check` refuses sharing.
KNOWN_ARGUMENTS = {
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "use_cache",
    "shared_kv_states",
    *CACHE_NAMES,
}


class KeysValues:
    """One layer's keys and values of the tokens before the last, in the shape of transformers'
    cache: filled, closed, then only read.
    """

    def __init__(self) -> None:
        self.kept: list[
            tuple[Tensor, Tensor]
        ] = []  # of the shared tokens [1, heads, C, d_head], of the rest [B, heads, P - C, d_head]
        self.closed = False

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, positions, d_head]` that the caller's queries may see."""
        seen = [*self.kept, (keys, values)]
        if not self.closed:
            self.kept = seen
        if len(seen) == 1:
            return keys, values
        n = len(keys)
        return (
            torch.cat([k.expand(n, -1, -1, -1) for k, _ in seen], dim=2),
            torch.cat([v.expand(n, -1, -1, -1) for _, v in seen], dim=2),
        )


class LayerCall:
    """One layer's calls for one batch, a layer with attention (`recurrent` has the others)."""

    def __init__(self, arguments: dict[str, Any], mask: Tensor, last: Tensor, shared: int) -> None:
        """Take note of the batch.

        Args:
            arguments: what the model passes to this layer for T positions.
            mask: the layer's own mask, additive or boolean `[T, T]`.
            last: each prompt's last position `[B]`.
            shared: C, the number of tokens that all prompts begin with.
        """
        self.arguments, self.cache = arguments_of(arguments), cache_in(arguments)
        self.last, self.shared = last, shared
        self.before_last = mask.shape[-1] - 1  # P
        self.allowed = mask if mask.dtype == torch.bool else mask == 0
        self.keys_values = KeysValues()

    def shared_tokens(self, layer: Module, tokens: Tensor) -> Tensor:
        """The shared tokens `[1, C, d_model]` through the layer."""
        return layer(tokens, **self._for_first(self.shared, slice(1)))

    def rest_tokens(self, layer: Module, tokens: Tensor) -> Tensor:
        """Positions C to P of all prompts, `[B, P - C, d_model]`.

        Padding stands at the end, so causality keeps it from the tokens.
        """
        return layer(tokens, **self._for_rest(tokens))

    def probes(self, layer: Module, probes: Tensor) -> Tensor:
        """Probes `[B, R, d_model]` at each prompt's end see the tokens before it and themselves."""
        return layer(probes, **self._for_probes(probes))

    def close(self) -> None:
        """From now on the tokens' keys and values are only read."""
        self.keys_values.closed = True

    def _for_rest(self, like: Tensor) -> dict[str, Any]:
        start, end = self.shared, self.before_last
        if not start:
            return self._for_first(end, slice(None))
        return self._call(
            **self._tables(lambda table: table[:, start:end]),
            position_ids=torch.arange(start, end, device=self.last.device)[None],
            attention_mask=_additive(self.allowed[start:end, :end], like)[None, None],
        )

    def _for_probes(self, probes: Tensor) -> dict[str, Any]:
        n, count = probes.shape[:2]
        positions = torch.arange(self.before_last, device=probes.device)
        sees = self.allowed[self.last, : self.before_last] & (positions < self.last[:, None])  # [B, P]
        alone = torch.eye(count, dtype=torch.bool, device=probes.device).expand(n, -1, -1)
        allowed = torch.cat([sees[:, None].expand(-1, count, -1), alone], dim=2)
        here = torch.arange(n, device=probes.device), self.last
        return self._call(
            **self._tables(lambda table: table.expand(n, -1, -1)[here][:, None]),
            position_ids=self.last[:, None].expand(-1, count),
            attention_mask=_additive(allowed, probes)[:, None],
        )

    def with_graph(self) -> AbstractContextManager:
        """What a call of `probes` needs around it for a gradient to be pulled back through it."""
        return nullcontext()

    def forget(self) -> None:
        """Give back the memory of a layer that is done with."""
        self.keys_values = KeysValues()

    def _for_first(self, count: int, prompts: slice) -> dict[str, Any]:
        """The model's own call for the first positions (a mask of none means causal attention)."""
        mask = self.arguments["attention_mask"]
        return self._call(
            **self._tables(lambda table: table[prompts, :count]),
            position_ids=torch.arange(count, device=self.last.device)[None],
            attention_mask=None if mask is None else mask[prompts, ..., :count, :count],
        )

    def _tables(self, at: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The rotary tables, or a family's one, at some positions; none without rotation."""
        tables = self.arguments.get("position_embeddings")
        if tables is None:
            return {}
        return {"position_embeddings": at(tables) if isinstance(tables, Tensor) else tuple(map(at, tables))}

    def _call(self, **changed: Any) -> dict[str, Any]:
        return {**self.arguments, **changed, self.cache: self.keys_values, "use_cache": True}


def arguments_of(handed: dict[str, Any]) -> dict[str, Any]:
    """What a layer is to be handed again.

    Raises:
        Refusal: a tensor among them of which nobody here knows what it means.
    """
    handed = {name: value for name, value in handed.items() if name != "cache_position"}
    for name, value in handed.items():
        if name not in KNOWN_ARGUMENTS and value is not None and not isinstance(value, bool | str | int | float):
            raise Refusal(f"decoder layers of this model take {name!r}, which attribution does not know how to pass on")
    return handed


def cache_in(handed: dict[str, Any]) -> str:
    """The name of the cache among them."""
    return next(name for name in CACHE_NAMES if name in handed)


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, each prompt's last one never counted.

    0 when they are few, or less than a quarter of the longest prompt: then one causal call, which
    needs no mask, is the cheaper one.
    """
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # all others lie between them in lexical order
    end = min(len(prompt) for prompt in prompts) - 1
    common = next((i for i in range(end) if first[i] != last[i]), end)
    return common if common >= WORTH_SHARING and 4 * common >= max(map(len, prompts)) else 0


def _additive(allowed: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, torch.finfo(like.dtype).min
    )
