"""What has no rows of one dense `W_down` a layer is refused by what it has."""

import pytest
import torch
from conftest import build
from torch import nn

from loki_ds.model.anatomy import decoder_layers
from loki_ds.refusal import Refusal


def test_experts_of_unknown_parts_beside_a_dense_down_projection_are_refused() -> None:
    model = build("llama", torch.float32)
    model.model.layers[2].experts = nn.Linear(2, 2)
    with pytest.raises(Refusal, match=r"layer 2 has a mixture of experts whose outputs are not simply added up"):
        decoder_layers(model)
