"""Shared pieces of KV plans."""
