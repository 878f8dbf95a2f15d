"""Shared pieces of decoding policies: scores by which positions are ordered."""
