"""The dial: how much of what was trained stays, between the base and the whole of it.

`scale` is a place on it, `scaled` what a model, an implant or an adapter is there, `curve` what was
measured along it and which place a budget chooses. Nothing trains, and no model is loaded.
"""
