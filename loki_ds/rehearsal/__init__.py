"""Rehearsal: a few texts of what the model already knows, learnt beside the new task by the base's
own predictions.

`answers` is what the base predicts on them, asked once before training; `divergence` is how far
another prediction is from it; `rows` makes examples of texts and answers and mixes them into the
new task's. No reference model is kept.
"""
