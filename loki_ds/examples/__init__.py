"""The new task's examples, from files as people have them to the tokens that train.

`sources` reads files and the hub's data sets row by row, `layouts` makes a conversation, a pair or
a text of each row (`turns`: what one turn says), `templates` says how the model's template takes
it (`preface`: and what is written elsewhere), `rendering` makes tokens and labels of it; `choice`
is how a recipe asks for all that. `whole` does so for all sources, counts what it found and keeps
it.
"""
