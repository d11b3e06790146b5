"""Implant: train the selected rows of every `W_down` on the new task and nothing else.

`arguments` turns the recipe into TRL's configuration, `settings` holds it against what TRL
declares, `supported` says what a training cannot be. `rows` trains a delta on the rows alone (modes
`rows` and `lora`), `mask` the whole `W_down` with all other rows put back; `baselines` are what
they are compared with; `pull` draws each of them back to the base, `rehearsing` learns the base's
answers beside the new task, `learnt` asks the head for no token that is not learnt. `training` runs
it, `watch` stops it when its numbers go wrong, `routing` watches a mixture's routers, `checkpoints`
resumes it.
"""
