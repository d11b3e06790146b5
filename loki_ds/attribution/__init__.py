"""Knowledge Vector Attribution: how much of what a model knows each down-projection row carries.

`definition` is the method word for word, with its target and the points of the path in `rules`.
`sweep` gives the same numbers in one pass up and one down the layers: `token_pass` carries the
tokens before the last, `layer_call` says how a layer with attention is called, `recurrent` one
without. `batches` chooses which prompts go
together, with `rope` where their lengths decide, `self_check` proves an unknown family, `kept`
stores scores prompt by prompt.
"""
