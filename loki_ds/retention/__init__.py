"""Retain: the same lm-eval tasks on the base and on the implanted model, paired document by
document.

`evaluation` has an arm's documents evaluated in processes of their own, each of which is an `arm`;
`parcels` is what they hand each other. `pairing` joins two arms, `statistics` says what the pairs
show, `forgetting` is the paper's score.
"""
