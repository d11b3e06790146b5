"""The stages of a run in their order: `check`, `attribute`, `select`,
`quiet` and `rehearse` if asked for, `implant`, `tune` if
asked for, `retain`; `two_checkpoints` is the last one without a run.

Here is only the way of the data, from the recipe and the run folder back to the run folder: `run`
is what stages share, `asking` what is asked of models, `inputs` what each one's result depends on,
`batch_size` and `costs` what it takes. What a stage computes is in the package of its name; a stage
whose result is already there for the same inputs is skipped.
"""
