"""The names of the strategies that select rows, by what each rests on; what they do is
`selection`'s.
"""

from typing import Literal, get_args

ByScores = Literal["layer_balanced", "layer_highest", "layer_smallest", "global_lowest", "global_highest"]
BySensitivity = Literal["layer_sensitivity", "layer_gain"]
Strategy = Literal[ByScores, BySensitivity, "random"]
BY_SCORES, BY_SENSITIVITY, STRATEGIES = (get_args(names) for names in (ByScores, BySensitivity, Strategy))
