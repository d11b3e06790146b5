"""A place on the dial, layer by layer."""

import pytest

from loki_ds.dial.scale import WHOLE, Scale


def test_one_share_is_that_of_every_layer() -> None:
    assert [Scale.of(0.5).of_layer(layer, 4) for layer in range(4)] == [0.5] * 4
    assert str(Scale.of(0.5)) == "0.5"


def test_a_slope_leads_from_the_first_layer_to_the_last() -> None:
    scale = Scale.of([0.2, 0.6])
    assert [scale.of_layer(layer, 4) for layer in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert scale.mean == pytest.approx(0.5)
    assert str(scale) == "0.2+0.6l"
    assert scale.of_layer(0, 1) == 0.2  # a model of one layer has no slope


def test_the_whole() -> None:
    assert Scale.of(1) == Scale.of([1, 0]) == WHOLE
