"""Shared pieces of engines: the prepared copy of a network, and the cost of several processes."""
