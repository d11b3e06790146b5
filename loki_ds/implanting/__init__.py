"""Implant: train the selected rows of every `W_down` on the new task and nothing else.

`arguments` turns the recipe into TRL's configuration, `data` reads the new task, `mask` confines
training to rows, `training` runs it.
"""
