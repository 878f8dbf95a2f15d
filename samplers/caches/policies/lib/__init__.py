"""Shared pieces of cache policies: the contract and the rules that decide by a residual."""
