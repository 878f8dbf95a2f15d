"""Ways to compute the ops: one file for each pair of an op and what runs it."""
