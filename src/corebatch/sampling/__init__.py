"""Which rows come: ids and sources on every example, and the order of an epoch."""
