"""What the base predicts on texts: one pass up, each layer gathered once a batch."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Module

from loki_ds.attribution.batches import IDLE, rank_batches
from loki_ds.attribution.token_pass import padded
from loki_ds.disk.files import written_whole
from loki_ds.distributed.ranks import all_gather
from loki_ds.distributed.zero.gathering import Gatherer
from loki_ds.distributed.zero.sharding import device_of
from loki_ds.implanting.divergence import Predictions, predictions_of
from loki_ds.implanting.rehearsal_rows import Text
from loki_ds.model.anatomy import calls_of_layers, logits_above, parts_around_layers, stack_of


def predict(
    model: Module, texts: Sequence[Text], planned: Sequence[list[int]], gatherer: Gatherer, top_k: int
) -> Predictions:
    """What the model predicts at the rehearsed places of every text, in the texts' order; on all
    ranks the same.

    planned: batches of indices into `texts`, shared out among the ranks.
    """
    mine: dict[int, Predictions] = {}
    idle = [Text.given(tokens) for tokens in IDLE]
    for batch in rank_batches(planned):
        of_batch = _of_batch(model, [texts[i] for i in batch] or idle, gatherer, top_k)
        mine |= dict(zip(batch, of_batch, strict=False))  # an idle rank's own text is nobody's
    by_text = {i: predictions for of_batch in all_gather(mine) for i, predictions in of_batch.items()}
    return Predictions(*map(torch.cat, zip(*(by_text[i] for i in range(len(texts))), strict=True)))


@torch.no_grad()
def _of_batch(model: Module, texts: Sequence[Text], gatherer: Gatherer, top_k: int) -> list[Predictions]:
    layers = stack_of(model)
    ids = padded([text.tokens for text in texts]).to(device_of(model))
    with gatherer.whole(*parts_around_layers(model)):
        run = calls_of_layers(model, layers, ids)
    hidden = run.hidden_states[0]
    with closing(gatherer.walk(layers)) as walk:
        for layer, arguments in zip(walk, run.arguments, strict=True):
            hidden = layer(hidden, **arguments)
    head = model.get_output_embeddings()  # type: ignore[operator]
    predictions = []
    with gatherer.whole(*parts_around_layers(model), head):
        for text, states in zip(texts, hidden, strict=True):
            asked = states[len(text.tokens) - text.predictions : len(text.tokens)]
            found = predictions_of(logits_above(model, layers, asked), top_k)
            predictions.append(Predictions(*(part.cpu() for part in found)))
    return predictions


def save_predictions(predictions: Predictions, file: Path) -> None:
    with written_whole(file) as aside:
        save_file(predictions._asdict(), aside)


def load_predictions(file: Path) -> Predictions:
    return Predictions(**load_file(file))
