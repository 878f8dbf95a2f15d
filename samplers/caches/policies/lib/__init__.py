"""Shared pieces of cache policies: distances between features."""
