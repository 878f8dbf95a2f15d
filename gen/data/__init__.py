"""Data: one file per source, a frozen dataclass with shape (C, H, W), classes (0: no labels) and open(split).

open("train" | "test") returns a map-style data set: len(), [i] -> {"x": float32 [C, H, W] in [-1, 1], "y": int64},
and `fingerprint`, the sha256 of what it holds.
"""
