"""Shared pieces of engines: the prepared copy of a network."""
