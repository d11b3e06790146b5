"""The recipe of a run: `sections` and `implant` are its keys with types and limits (each of them
`strict`), `file` reads it with its bases and overrides from `yaml`, `shipped` finds the files that
travel with the package. `modes` and `strategies` are the words that a recipe chooses among,
`training_keys` what TRL's section may hold, `retired` what older recipes could say; `new` writes
one for whoever has none.

Knows nothing of models, data or ranks, and is quick to import.
"""
