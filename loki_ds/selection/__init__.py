"""Which rows may train: `select` chooses them by scores, `positions` has them and their file."""
