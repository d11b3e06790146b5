"""What can be known before the first product: `base`, `selection`, `tasks`, their `prompts` and
room on `disk`, each looked at and said in words (`findings`); `schema` is what an editor knows of a
recipe, `versions` which libraries are newer than tested.

The stage `check` looks at all of it, a plan at what needs no weights and no whole data set; what
would fail later is refused here. Settings are held against TRL and DeepSpeed where they are read
(`implanting.trl_checks`, `implanting.deepspeed_checks`)."""
