"""Which rows may train: `select` chooses them from scores, `positions` are the rows and the
authors' file that holds them.
"""
