"""What a model is, for every stage: on the disk and in memory.

`base` finds the recipe's model with its configuration and tokenizer, `files` reads its tensors and
knows where `W_down` lies in them, `anatomy` finds the same parts on the loaded model.
"""
