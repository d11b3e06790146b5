"""The tokens before the last, carried up the layers: they are the same for every intervention, and
they leave the keys and values that the last token's probes see.

Knows what the model's own forward hands to its layers. Knows nothing of interventions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence

from loki_ds.attribution.layer_call import LayerCall, shared_length
from loki_ds.attribution.recurrent import RecurrentCall
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.distributed.zero.sharding import device_of
from loki_ds.model.anatomy import attention_implementation, calls_of_layers, parts_around_layers

Call = LayerCall | RecurrentCall


@dataclass
class Tokens:
    """B prompts between two layers: the longest has T tokens, P is T - 1, all share the first C."""

    shared: Tensor  # the tokens that all prompts begin with [1, C, d_model]
    rest: Tensor  # every other token but the last, right-padded [B, P - C, d_model]
    last: Tensor  # the last token [B, 1, d_model]

    def go_up(self, layer: Module, call: Call) -> None:
        """All but the last through one layer; they leave their keys and values."""
        if self.shared.shape[1]:
            self.shared = call.shared_tokens(layer, self.shared)
        if self.rest.shape[1]:
            self.rest = call.rest_tokens(layer, self.rest)
        call.close()

    def forget(self) -> None:
        """Give back the memory of all but the last."""
        self.shared = self.rest = self.rest[:, :0]


@torch.no_grad()
def embed(
    model: Module, layers: list[Module], gatherer: Gatherer, prompts: Sequence[Sequence[int]]
) -> tuple[Tokens, list[Call]]:
    """Embed the right-padded prompts, and learn each layer's call from the model's own forward."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    where = device_of(model)
    ids, last = padded(prompts).to(where), (lengths - 1).to(where)
    with gatherer.whole(*parts_around_layers(model)):
        run = calls_of_layers(model, layers, ids)
        with attention_implementation(model, "eager"):
            masked = calls_of_layers(model, layers, ids[:1])
    embedded, shared = run.hidden_states[0], shared_length(prompts)
    tokens = Tokens(
        shared=embedded[:1, :shared],
        rest=embedded[:, shared:-1],
        last=embedded[torch.arange(len(prompts), device=where), last][:, None],
    )
    calls: list[Call] = []
    for arguments, with_mask in zip(run.arguments, masked.arguments, strict=True):
        mask = with_mask["attention_mask"]
        if mask is None:  # attention by the definition always has one
            calls.append(RecurrentCall(arguments, [len(prompt) for prompt in prompts], last, shared))
        else:
            calls.append(LayerCall(arguments, mask[0, 0], last, shared))
    return tokens, calls


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of different lengths, filled up with 0 on the right: `[B, T]` int64."""
    return pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True)
