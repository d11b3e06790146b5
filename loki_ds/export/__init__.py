"""What leaves a run: a plain checkpoint, an implant file to apply and revert, a stock PEFT adapter,
and a model card.

`implant_file` holds the rows as they were and as they are, `checkpoint` puts them into safetensors
files, `in_memory` into a loaded model, `adapter` writes them for PEFT.
"""
