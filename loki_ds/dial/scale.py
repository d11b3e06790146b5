"""A place on the dial: the share of the trained change that each layer keeps."""

from typing import NamedTuple


class Scale(NamedTuple):
    """`start + slope (l - 1) / (L - 1)` of the change in layer l of L, counted from 1; 0 is the
    base, 1 the whole of what was trained.
    """

    start: float
    slope: float = 0.0

    @classmethod
    def of(cls, value: float | list[float]) -> "Scale":
        return cls(*value) if isinstance(value, list) else cls(value)

    def of_layer(self, layer: int, layers: int) -> float:
        """Of a layer counted from 0."""
        return self.start + self.slope * layer / (layers - 1) if layers > 1 else self.start

    @property
    def mean(self) -> float:
        """Over the layers."""
        return self.start + self.slope / 2

    def __str__(self) -> str:
        return f"{self.start:g}{self.slope:+g}l" if self.slope else f"{self.start:g}"


WHOLE = Scale(1.0)
