"""What a recipe would need, before a node is booked: memory, traffic and time on so many ranks.

`dry_run` runs the recipe's own work on tensors without data, `partitioning` says what ZeRO makes of
it, `hardware` knows GPUs, `estimate` puts the three together for one setting, `passes` for each
stage, `plan` for a whole recipe, and `table` shows it. No weights are loaded.
"""
