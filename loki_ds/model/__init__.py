"""What a model is, for every stage: on the disk and in memory.

`base` finds the recipe's model with its configuration and tokenizer, `files` reads its tensors and
`stored_rows` knows which of them hold its rows, `usable` asks whether it can be trained and written
again. On the loaded model, `sites` finds where each layer's FFN writes, and `anatomy` all around
it; `wide` says what a row of a mixture of experts is.
"""
