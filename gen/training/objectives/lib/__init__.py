"""Shared pieces of objectives: losses of masked tokens."""
