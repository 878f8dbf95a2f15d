"""Handwritten digits: 1797 of 8 x 8 pixels, from scikit-learn's wheel, so nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.data.lib.tensors import Tensors, content_hash, split_indices

__all__ = ["Digits"]

HELD_OUT = 360


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 8 x 8 grey, ten classes: 1437 to train on and 360 held out, always the same ones.

    Grey levels 0..16 become [-1, 1] exactly (x / 8 - 1). The split is stratified and depends on nothing but each
    digit's index in scikit-learn's file (gen.data.lib.tensors.split_indices). Source: the test part of UCI's
    "Optical Recognition of Handwritten Digits".
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 8, 8)

    @property
    def classes(self) -> int:
        return 10

    def open(self, split: str) -> Tensors:
        """Open "train" or "test"."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        rows = split_indices(split, len(labels), HELD_OUT, labels.tolist())
        x = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 8, 8)[rows]
        y = torch.from_numpy(labels).long()[rows]
        return Tensors(x, y, content_hash("digits", x, y), shift=8.0, scale=1 / 8)
