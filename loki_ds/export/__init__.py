"""What leaves a run: a plain checkpoint, an implant file to apply and revert, a stock PEFT adapter,
and a model card.

`implant_file` holds the rows as they were and as they are, `checkpoint` puts them into safetensors
files, `in_memory` into a loaded model, `adapter` writes them for PEFT.
"""

from loki_ds.export.in_memory import apply_implant, revert_implant

__all__ = ["apply_implant", "revert_implant"]
