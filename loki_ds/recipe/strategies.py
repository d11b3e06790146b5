"""Names of strategies that select rows, by what each rests on, and of the places where rows lie;
what they mean is `selection`'s and `model.row_blocks`'.
"""

from typing import Literal, get_args

ByScores = Literal["layer_balanced", "layer_highest", "layer_smallest", "global_lowest", "global_highest"]
Strategy = Literal[ByScores, "random"]
Place = Literal["down", "gate_up", "attention", "all"]
BY_SCORES, STRATEGIES = get_args(ByScores), get_args(Strategy)
