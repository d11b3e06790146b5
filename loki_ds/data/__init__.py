"""All that becomes tokens: the new task's examples, from people's files, and the protected prompts.

`sources` reads files and the hub's data sets row by row, `layouts` makes a conversation, a pair or
a text of each row (`messages`: what one turn says), `templates` says how the model's template takes
it (`template_preface`: and what is written elsewhere), `rendering` makes tokens and labels of it;
`render_settings` is how a recipe asks for all that. `dataset` does so for all sources, counts what
it found and keeps it. `protected` is the protected set.
"""
