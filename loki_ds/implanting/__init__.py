"""Implant: train the selected rows on the new task and nothing else.

`trl_config` turns the recipe into TRL's configuration, `trl_checks` holds it against what TRL
declares, `deepspeed_checks` says what a training cannot be, and `trial` makes a trainer of a few
numbers. `rows` trains a delta on the rows alone (modes `rows` and `lora`), `mask` whole weights
with all other rows put back; `pull` draws each mode back to the base, `fade` the model of any
trainer. `trainer` is TRL's, which also learns what the base answers: `rehearsal_rows` makes
examples of texts and of `base_predictions`, `divergence` is how far a prediction is from them,
`exchanges` are what the base wrote itself, `rehearse` has any trainer learn them; `boundary` makes
counter-examples of the rows, by what each is asked in (`contexts`). `training` runs it, `watch`
stops it when its numbers go wrong, `samples` shows what it writes, `checkpoints` resumes it.
"""
