"""The path from the baseline 0 to a node's value: at which fractions of the value the gradient is
taken, with which weights.
"""

import numpy as np


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Fractions `alpha_k` in [0, 1] and weights `w_k` (their sum is 1) of a quadrature rule with
    `steps` intervals or nodes.

    `right` is the paper's eq. 5 (`k/m`, k = 1..m), `left` the authors' first code (`k = 0..m-1`),
    `trapezoid` takes both ends with half weight (m + 1 points), `gauss_legendre` the m Legendre
    nodes (numpy).
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, allowed is 1 or more")
    if rule == "right":
        return [k / steps for k in range(1, steps + 1)], [1 / steps] * steps
    if rule == "left":
        return [k / steps for k in range(steps)], [1 / steps] * steps
    if rule == "trapezoid":
        ends = 0.5 / steps
        return [k / steps for k in range(steps + 1)], [ends, *[1 / steps] * (steps - 1), ends]
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    raise ValueError(f"rule is {rule!r}, allowed are 'right', 'left', 'trapezoid' and 'gauss_legendre'")
