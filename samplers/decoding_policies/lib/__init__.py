"""Shared pieces of policies: scores by which positions are ordered."""
