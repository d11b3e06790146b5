"""Names of strategies that select rows, by what each rests on; what they do is `selection`'s."""

from typing import Literal, get_args

ByScores = Literal["layer_balanced", "layer_highest", "layer_smallest", "global_lowest", "global_highest"]
Strategy = Literal[ByScores, "random"]
BY_SCORES, STRATEGIES = get_args(ByScores), get_args(Strategy)
