"""Decoding policies: which of the proposed tokens are committed. Contract: gen.text.contracts.DecodingPolicy."""
