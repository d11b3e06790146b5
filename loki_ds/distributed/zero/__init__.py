"""ZeRO: the one folder that knows DeepSpeed's partitioning. Nothing else does.

`configuration` reads ZeRO's section of a DeepSpeed file, `model` loads a model that is sharded
while it is built and gathers its modules for reading, `optimizer` reaches the shards that an
optimizer steps, `states` says how much it keeps, `checkpoints` divides a training's state anew. The
same calls work with ZeRO off and on a single process. Nothing here knows rows, methods or recipes.
"""
