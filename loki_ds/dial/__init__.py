"""The dial: how much of what was trained stays, between the base and the whole of it.

`scaled` is what a model, an implant or an adapter is at a scale, `curve` what was
measured along it and which place a budget chooses. Nothing trains, and no model is loaded.
"""
