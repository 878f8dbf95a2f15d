"""Shared parts of denoisers: bases of families and wrappers, blocks, attention, embeddings, state spaces."""
