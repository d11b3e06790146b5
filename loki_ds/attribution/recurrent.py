"""How the sweep calls a layer whose token mixer is recurrent: a short convolution, a linear
attention (Qwen3.5's gated delta rule), a state-space model.

Only the mixer knows of time, so the probes of one position each take one step of their own from the
state that the tokens before them left, and never see one another. A state cannot pass over padding,
so the tokens before go through in groups of equal length.

Knows the methods that transformers' mixers ask of a cache. Knows nothing of interventions.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Module
from torch.nn.functional import pad

from loki_ds.attribution.layer_call import arguments_of, cache_in


class State:
    """What the tokens so far left in one layer, in the shape of transformers' cache: kept by every
    update until it is closed, then only read.

    conv: the last inputs of each short convolution `[B, channels, kernel]`; recurrent: `[B, ...]`.
    """

    def __init__(self, conv: dict[int, Tensor] | None = None, recurrent: dict[int, Tensor] | None = None) -> None:
        self.conv, self.recurrent, self.closed = conv or {}, recurrent or {}, False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.conv.get(state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.recurrent.get(state_idx)

    def update_conv_state(
        self, inputs: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """All inputs that the convolution is to see `[B, channels, kept + new]`."""
        kept = self.conv.get(state_idx)
        seen = inputs if kept is None else torch.cat([kept, inputs], dim=-1)
        if not self.closed:
            self.conv[state_idx] = seen[..., -(conv_kernel_size or inputs.shape[-1]) :]
        return seen

    def update_recurrent_state(self, new: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        if not self.closed:
            self.recurrent[state_idx] = new
        return new

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        return bool(self.conv or self.recurrent)

    def is_recording_past(self, *_: Any) -> bool:
        """True keeps mixers from stepping in place, which no gradient could be pulled through."""
        return True

    def copies(self, batch: int, times: int = 1) -> "State":
        """Each prompt's state (or the shared one), `times` in a row for each prompt of a batch."""

        def copied(cell: Tensor) -> Tensor:
            return cell.expand(batch, *cell.shape[1:]).repeat_interleave(times, dim=0)

        return State(*({i: copied(cell) for i, cell in kind.items()} for kind in (self.conv, self.recurrent)))


def together(groups: list[tuple[Tensor, State]], batch: int) -> State:
    """One state for the batch from those of its groups, each with its members' places `[n]`. Where
    no token came before there is nothing, which is zero.
    """
    joined = State()
    for members, state in groups:
        for into, kind in ((joined.conv, state.conv), (joined.recurrent, state.recurrent)):
            for i, cell in kind.items():
                known = into.get(i, cell.new_zeros(batch, *cell.shape[1:]))
                width = max(known.shape[-1], cell.shape[-1])
                into[i] = pad(known, (width - known.shape[-1], 0))
                into[i][members] = pad(cell, (width - cell.shape[-1], 0))
    return joined


class RecurrentCall:
    """One recurrent layer's calls for one batch; the three of `layer_call.LayerCall`."""

    def __init__(self, arguments: dict[str, Any], lengths: Sequence[int], last: Tensor, shared: int) -> None:
        """Take note of the batch.

        Args:
            arguments: what the model passes to this layer.
            lengths: of the prompts.
            last: their last positions `[B]`.
            shared: how many tokens all of them begin with.
        """
        self.arguments, self.cache = arguments_of(arguments), cache_in(arguments)
        self.lengths, self.last, self.shared = lengths, last, shared
        self.state = State()

    def shared_tokens(self, layer: Module, tokens: Tensor) -> Tensor:
        return layer(tokens, **self._call(self.state, slice(1), slice(self.shared)))

    def rest_tokens(self, layer: Module, tokens: Tensor) -> Tensor:
        out, groups = torch.zeros_like(tokens), []
        rest = [length - 1 - self.shared for length in self.lengths]
        for length in sorted(set(rest)):
            members = torch.tensor([i for i, left in enumerate(rest) if left == length], device=tokens.device)
            state = self.state.copies(len(members))
            if length:
                here = slice(self.shared, self.shared + length)
                out[members, :length] = layer(tokens[members, :length], **self._call(state, members, here))
            groups.append((members, state))
        self.state = together(groups, len(self.last))
        return out

    def close(self) -> None:
        """From now on the tokens' state is only read."""
        self.state.closed = True

    def probes(self, layer: Module, probes: Tensor) -> Tensor:
        state = self.state.copies(*probes.shape[:2])
        state.closed = True
        with each_row_a_step(layer, self.cache):
            return layer(probes, **self._call(state, torch.arange(len(probes), device=probes.device), self.last))

    def with_graph(self) -> AbstractContextManager:
        """Mamba's one-step form writes into the state that it read.

        torch tells saved tensors apart by where they lie, and fake ones lie nowhere.
        """
        if isinstance(self.last, FakeTensor):
            return nullcontext()
        return torch.autograd.graph.allow_mutation_on_saved_tensors()

    def forget(self) -> None:
        """Give back the memory of a layer that is done with."""
        self.state = State()

    def _call(self, state: State, prompts: Any, positions: Any) -> dict[str, Any]:
        """Without a mask, at some positions of some prompts."""
        changed: dict[str, Any] = {"attention_mask": None, "position_ids": None}
        if self.arguments.get("position_embeddings") is not None:
            tables = (table.expand(len(self.last), -1, -1) for table in self.arguments["position_embeddings"])
            changed["position_embeddings"] = tuple(_at(table, prompts, positions) for table in tables)
        return {**self.arguments, **changed, self.cache: state, "use_cache": True}


def _at(table: Tensor, prompts: Any, positions: Any) -> Tensor:
    rows = table[prompts]
    return rows[:, positions] if isinstance(positions, slice) else rows[prompts, positions][:, None]


@contextmanager
def each_row_a_step(layer: Module, cache: str) -> Iterator[None]:
    """While open, the layer's mixer gets probes `[B, R, d_model]` as `B R` sequences of one token;
    all else in the layer sees them as they are. The mixer is the child that is handed the cache.
    """

    def spread(_: Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not isinstance(named.get(cache), State):
            return None
        if arguments:
            return (arguments[0].flatten(0, 1)[:, None], *arguments[1:]), named
        return arguments, {**named, "hidden_states": named["hidden_states"].flatten(0, 1)[:, None]}

    def gather(_: Module, __: tuple, named: dict[str, Any], output: Any) -> Any:
        if not isinstance(named.get(cache), State):
            return None
        mixed = output[0] if isinstance(output, tuple) else output
        mixed = mixed.view(size[0], size[1], -1)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    def note(_: Module, arguments: tuple) -> None:
        size[:] = arguments[0].shape[:2]

    size = [0, 0]
    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_pre_hook(note))
        for child in layer.children():
            hooks.enter_context(child.register_forward_pre_hook(spread, with_kwargs=True))
            hooks.enter_context(child.register_forward_hook(gather, with_kwargs=True))
        yield
