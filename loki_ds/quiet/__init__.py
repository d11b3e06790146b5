"""Quiet implanting (beyond the paper): keep the delta out of the span of what `W_down` receives on
protected prompts.

Rows say which outputs may change; a subspace says for which inputs. `moments` collects `C = E[x
x^T]` layer by layer, `subspace` finds the directions that hold a share of its energy, `certificate`
says how much protected inputs can feel of an implant.
"""
