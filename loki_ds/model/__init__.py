"""What a model is, for every stage: on the disk and in memory.

`base` finds the recipe's model with its configuration and tokenizer, `files` reads its tensors and
knows where `W_down` lies in them, `usable` asks whether it can be trained and written again,
`anatomy` finds the same parts on the loaded model.
"""
