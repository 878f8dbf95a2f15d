"""Data: one file per source, a frozen dataclass with shape (C, H, W), classes (0: no labels) and open(split).

open("train" | "test") returns a map-style data set: len(), [i] -> {"x": float32 [C, H, W] in [-1, 1], "y": int64},
and `fingerprint`, the sha256 of what it holds.

Text has the shape (L,), a tokenizer and its vocab, and items {"x": int64 [L], "prompt", "length": int64 0-d}: the first
`prompt` tokens are given, never masked and never trained; from place `length` on there is padding (the tokeniser's
first stop token), which nobody sees.
"""
