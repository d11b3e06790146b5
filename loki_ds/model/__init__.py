"""What a model is, for every stage: on the disk and in memory.

`base` finds the recipe's model with its configuration and tokenizer, and loads it by the class that
`classes` says, `adapters` puts PEFT's on it; `files` reads its tensors and `stored_rows` knows
which of them hold its rows, `base_checks` asks whether it can be trained and written again. On the
loaded model, `ffn` finds where each layer writes, and `anatomy` all around it; `row_blocks` finds
the `row_weights` whose rows may train, and `expert_rows` says what a row of a mixture of experts
is. `template_date` holds the date in its chat template,
and `replaced` a library's name for a while.
"""
