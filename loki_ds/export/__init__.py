"""What leaves a run: a plain checkpoint, an implant file to apply and revert, a stock PEFT adapter,
and the proof that nothing else changed.

`collect` gathers what trained, `products` makes of it what leaves. `implant_file` holds the rows as
they were and as they are, `checkpoint` puts them into safetensors files, `in_memory` into a loaded
model, `adapter` writes them for PEFT; `merge` puts a baseline's adapter into its base. `scaled` is
each of them with a share of the change, `verification` compares two checkpoints byte for byte.
"""
