"""The stages of a run in their order: `check`, `ask_base`, `base_writes` if something of the base's
own is rehearsed, `attribute`, `select`, `rehearse` if asked for, `implant`, `tune` if
asked for, `retain`; `job` is that order, `two_checkpoints` is retention without a run, and
`two_logs` without asking anything; `any_two` is both from Python. `rates` runs short trainings of a
recipe, each a job of its own, and `publish` comes after `retain` if asked for.

Here is only the way of the data, from the recipe and the run folder back to the run folder. `run`
is what stages share and the one way in which each is done once; `fingerprints` is what each result
depends on, `questions` what is asked of models, `base_says` what the base says to any prompts,
`report` what is written of the answers, `curve` of a tuned scale, `costs` what it takes. What a
stage computes is in the package of its name.
"""
