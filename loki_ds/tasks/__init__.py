"""What lm-eval declares of its tasks: `loading` finds what is behind a name, `metrics` what can be
measured of every document, `prompts` how each is put, and `judging` whether its answer is judged.
"""
