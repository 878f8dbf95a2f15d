"""Policies of parallel decoding: which of the drawn tokens are committed at a step. Contract: gen/text/contracts."""
