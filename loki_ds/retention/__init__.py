"""Retain: the same lm-eval tasks on the base and on the implanted model, paired document by
document.

`arm` runs one model through lm-eval in a process of its own, `pairing` joins two arms, `statistics`
says what the pairs show, `forgetting` is the paper's score.
"""
