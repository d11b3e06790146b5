"""Quiet implanting (beyond the paper): keep the delta out of the span of what `W_down` receives on
protected prompts.

Rows say which outputs may change; a subspace says for which inputs. `moments` collects `C = E[x
x^T]` of what every `W_down` receives, layer by layer, and `kept` stores it; `subspace` finds the
directions that hold a share of its energy, and certifies how much protected inputs can feel of an
implant.
"""
