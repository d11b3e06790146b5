"""Which rows may train: `select` chooses among `blocks`, `positions` has the chosen ones."""
