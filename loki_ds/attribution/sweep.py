"""KVA in one sweep up and one down the layers: every layer's weights are used twice per batch of
prompts, not layers x steps times.

Only the last token changes between interventions and attention is causal, so the keys and values of
everything before it are computed once. The last token is carried as a set of **probes** that all
sit at its position and see the tokens before it and themselves, never one another: the true one,
and from every layer passed its **variants**, copies of the true one with what the FFN wrote scaled
by alpha. At the top the target is taken on all probes; on the way down each layer is recomputed
from its stored probes and the gradient pulled back, and what arrives at a layer's own fresh
variants is what the definition asks for.

Knows nothing of partitioning beyond the gatherer it is given, and nothing of any model family (see
`anatomy`, `layer_call`).
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from loki_ds.attribution.rules import quadrature, target_gradient, target_value
from loki_ds.attribution.token_pass import Call, Tokens, embed
from loki_ds.distributed.device import free_memory
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.distributed.zero.sharding import is_sharded
from loki_ds.model.anatomy import (
    check_attention,
    decoder_layers,
    logits_above,
    parts_around_layers,
)
from loki_ds.model.ffn import Writer, at_writers

HEAD_PROBES = 4096  # probes whose logits are held at once: 4096 x 128k vocabulary in float32 is 2 GB


@dataclass
class Swept:
    """One batch's result, on the CPU: scores `[B, L, d_model]`, target token `[B]`, value `F(z)`
    `[B]`, baseline `F(0)` `[B, L]`.
    """

    scores: Tensor
    target_token: Tensor
    value: Tensor
    baseline: Tensor

    @property
    def residual(self) -> Tensor:
        """Completeness, `[B, L]`: `sum_j Attr_{l,j} - (F(z_l) - F(0))`; 0 for an exact integral, if
        scores are multiplied by value.
        """
        return self.scores.sum(-1) - (self.value[:, None] - self.baseline)


class Sweep:
    """The sweep over one model with one rule and target; `run` takes a batch of prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        steps: int = 7,
        rule: str = "right",
        target: str = "probability",
        multiply_by_value: bool = True,
        gatherer: Gatherer | None = None,
    ) -> None:
        if target not in ("probability", "logit"):
            raise ValueError(f"target is {target!r}, allowed are 'probability' and 'logit'")
        self.model, self.layers = model, decoder_layers(model)
        check_attention(model)
        self.alphas, self.weights = quadrature(rule, steps)
        self.target, self.multiply_by_value = target, multiply_by_value
        self.gatherer = gatherer or Gatherer()

    def attempt(self, prompts: Sequence[Sequence[int]]) -> Swept | None:
        """Scores for one batch, or None when the device's memory is not enough for it.

        Even so this rank has joined every gather of the pass, so no other rank waits for it.
        """
        gathers = self.gatherer.count
        try:
            return self.run(prompts)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        free_memory()  # the batch is gone with the error; the gathers to come need its room
        for modules in self._gathers()[self.gatherer.count - gathers :]:
            with self.gatherer.whole(*modules):
                pass
        return None

    def _gathers(self) -> list[list[Module]]:
        """What one pass gathers, in order; nothing when the model is whole."""
        if not is_sharded(self.model):
            return []
        around, head = parts_around_layers(self.model), self.model.get_output_embeddings()
        layers = [[layer] for layer in self.layers]
        return [around, *layers, [*around, head], *layers[::-1]]

    def run(self, prompts: Sequence[Sequence[int]]) -> Swept:
        """Scores for one batch; two gathers of every layer, whatever the batch."""
        batch = _Batch(*embed(self.model, self.layers, self.gatherer, prompts))
        self._go_up(batch)
        gradient = self._take_target(batch)
        scores = self._come_down(batch, gradient)
        return Swept(scores.cpu(), batch.target_token.cpu(), batch.value.cpu(), batch.baseline.cpu())

    @torch.no_grad()
    def _go_up(self, batch: "_Batch") -> None:
        """Tokens and probes through the layers.

        Every layer adds its fresh variants, and one at alpha 0 that gives `F(0)`.
        """
        alphas = _on_device([*self.alphas, 0.0], batch.tokens.last)
        with closing(self.gatherer.walk(self.layers)) as layers:
            for layer, call in zip(layers, batch.calls, strict=True):
                self._layer_up(layer, call, batch, alphas)
        batch.tokens.forget()

    def _layer_up(self, layer: Module, call: Call, batch: "_Batch", alphas: Tensor) -> None:
        tokens = batch.tokens
        tokens.go_up(layer, call)
        fresh = tokens.last.expand(-1, len(alphas), -1)
        probes = torch.cat([tokens.last, batch.variants, batch.at_zero, fresh], dim=1)
        with scaled_writes(layer, alphas) as taken:
            out = call.probes(layer, probes)
        batch.left.append(_Left(tokens.last, batch.variants, torch.stack([u[:, 0] for u in taken.unscaled], 1)))
        sizes = [1, batch.variants.shape[1], batch.at_zero.shape[1], len(self.alphas), 1]
        tokens.last, variants, at_zero, fresh, fresh_at_zero = out.split(sizes, dim=1)
        batch.variants, batch.at_zero = torch.cat([variants, fresh], 1), torch.cat([at_zero, fresh_at_zero], 1)

    def _take_target(self, batch: "_Batch") -> Tensor:
        """`F` on all probes, kept in the batch; returns its gradient at the top of the variants,
        `[B, L * steps, d_model]`.
        """
        head = self.model.get_output_embeddings()
        with self.gatherer.whole(*parts_around_layers(self.model), head):
            self._take_values(batch)
            tokens = batch.target_token[:, None].expand(batch.variants.shape[:2]).flatten()
            gradients: list[Tensor] = []
            for chunk, token in zip(
                batch.variants.flatten(0, 1).split(HEAD_PROBES), tokens.split(HEAD_PROBES), strict=True
            ):
                point = chunk.detach().requires_grad_()
                logits = self._logits(point)
                gradients += torch.autograd.grad(logits, point, target_gradient(logits, token, self.target))
        return torch.cat(gradients).view_as(batch.variants)

    @torch.no_grad()
    def _take_values(self, batch: "_Batch") -> None:
        """The target token of each prompt, `F(z)`, and `F(0)` of every layer."""
        probes = torch.cat([batch.tokens.last, batch.at_zero], dim=1)  # [B, 1 + L, d_model]
        tokens, values = [], []
        for some in probes.split(max(1, HEAD_PROBES // probes.shape[1])):
            logits = self._logits(some.flatten(0, 1)).view(*some.shape[:2], -1)
            tokens.append(logits[:, 0].argmax(-1))
            values.append(target_value(logits, tokens[-1][:, None].expand(some.shape[:2]), self.target))
        batch.target_token, value = torch.cat(tokens), torch.cat(values)
        batch.value, batch.baseline = value[:, 0], value[:, 1:]

    def _logits(self, probes: Tensor) -> Tensor:
        return logits_above(self.model, self.layers, probes)

    def _come_down(self, batch: "_Batch", gradient: Tensor) -> Tensor:
        """Pull the gradient back layer by layer, `[B, (l + 1) * steps, d_model]` at layer l;
        returns scores `[B, L, d_model]`.
        """
        steps = len(self.alphas)
        weights = torch.tensor(
            self.weights, device=gradient.device, dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        alphas, scores = _on_device(self.alphas, gradient), []
        with closing(self.gatherer.walk(self.layers[::-1])) as layers:
            for layer, call in zip(layers, batch.calls[::-1], strict=True):
                left = batch.left.pop()
                probes = torch.cat([left.variants, left.last.expand(-1, steps, -1)], dim=1).detach().requires_grad_()
                with call.with_graph():
                    with scaled_writes(layer, alphas) as taken:
                        out = call.probes(layer, probes)
                    below, *at_fresh = torch.autograd.grad(out, (probes, *taken.scaled), gradient)
                score = torch.einsum("bnkd,k->bnd", torch.stack(at_fresh, 1).to(weights.dtype), weights)
                scores.append((score * left.value if self.multiply_by_value else score).sum(1))
                gradient = below[:, :-steps]
                call.forget()
        return torch.stack(scores[::-1], dim=1)


class _Left(NamedTuple):
    """What a layer leaves on the way up for the way down."""

    last: Tensor  # the true last token below it [B, 1, d_model]
    variants: Tensor  # the probes below it [B, layers passed * m, d_model]
    value: Tensor  # what its FFN truly writes [B, branches, d_model]


class _Batch:
    """A batch of B prompts between two layers: its tokens, and the probes of its interventions."""

    def __init__(self, tokens: Tokens, calls: list[Call]) -> None:
        self.tokens, self.calls = tokens, calls
        self.variants = tokens.last[:, :0]  # probes at alpha_1..alpha_m [B, layers passed * m, d_model]
        self.at_zero = tokens.last[:, :0]  # probes at alpha 0 [B, layers passed, d_model]
        self.left: list[_Left] = []  # of the layers passed
        self.target_token = self.value = self.baseline = torch.empty(0)


@dataclass
class _Taken:
    """What each branch of the FFN wrote in one call: as it came `[B, R, d_model]`, and the fresh
    probes' share after scaling `[B, m, d_model]`, the first writer's where several are added up.
    """

    unscaled: list[Tensor]
    scaled: list[Tensor]


def _on_device(alphas: Sequence[float], beside: Tensor) -> Tensor:
    """Alphas `[m]`, float64, once for all layers: each copy from the host makes the device wait."""
    return torch.tensor(alphas, dtype=torch.float64, device=beside.device)


@contextmanager
def scaled_writes(layer: Module, alphas: Tensor) -> Iterator[_Taken]:
    """The intervention: while open, alpha scales the FFN's output at the last `len(alphas)` probes.

    It happens inside the layer, so whatever follows (a post-norm, a residual multiplier) is the
    family's own code. Writers that are added up are each multiplied, which multiplies the sum, and
    a gradient at one of them is the gradient at the sum.
    """
    taken = _Taken([], [])

    def scale(writer: Writer, output: Tensor) -> Tensor:
        factors = alphas.to(output.dtype)
        old, fresh = output[:, : -len(alphas)], output[:, -len(alphas) :]
        scaled = fresh * factors[:, None]
        if writer.adds:
            taken.unscaled[writer.branch] = taken.unscaled[writer.branch] + output
        else:
            taken.unscaled.append(output)
            taken.scaled.append(scaled)
        return torch.cat([old, scaled], dim=1)

    with at_writers(layer, scale):
        yield taken
