"""Shared pieces of caches: the contracts of their parts, the session, its memory of features."""
