"""Networks of other libraries as networks of this one. Nothing of theirs is patched, and nothing of theirs copied."""
