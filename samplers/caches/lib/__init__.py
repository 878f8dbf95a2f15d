"""Shared pieces of caches: the session, its memory of features, its report."""
