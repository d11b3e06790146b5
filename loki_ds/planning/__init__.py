"""What a recipe would need, before a node is booked: memory, traffic and time, for any number of
ranks.

`dry_run` runs the recipe's own work on tensors without data, `partitioning` says what ZeRO makes of
it, `hardware` knows GPUs, `estimate` puts them together and `table` shows it. No weights are
loaded.
"""

from loki_ds.planning.hardware import gpu
from loki_ds.planning.table import plan

__all__ = ["gpu", "plan"]
