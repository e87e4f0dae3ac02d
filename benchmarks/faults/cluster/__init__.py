"""A Ray cluster on hosts of one machine, and the faults of it."""
