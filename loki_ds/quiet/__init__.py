"""Quiet implanting (beyond the paper): keep the delta out of the span of what `W_down` receives on
protected prompts.

Rows say which outputs may change; a subspace says for which inputs. `inputs` shows what every
`W_down` receives, `moments` collects `C = E[x x^T]` of it layer by layer and `kept` stores that,
`subspace` finds the directions that hold a share of its energy, `certificate` says how much
protected inputs can feel of an implant.
"""
