"""ZeRO: the one folder that knows DeepSpeed's partitioning. Nothing else does.

`configuration` reads ZeRO's section of a DeepSpeed file, `sharding` knows whether a model is held
in parts, `gathering` makes its modules whole for reading, `optimizer` reaches the shards that an
optimizer steps, `states` says how much it keeps, `checkpoints` divides a training's state anew. The
same calls work with ZeRO off and on a single process. Nothing here knows rows, methods or recipes.
"""
