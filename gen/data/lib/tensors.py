"""A data set in memory, and the one rule by which data are held out for testing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.noise import derive

__all__ = [
    "CHANGED", "SPLITS", "Tensors", "check_labels", "check_split", "content_hash", "hold_out", "split_indices",
]  # fmt: skip

CHANGED = "has changed since the data were opened: put it back and resume, or start a new run"


SPLITS = ("train", "test")
MOST_CLASSES = 10**6  # of data that do not say how many they have


@dataclass(frozen=True, eq=False)
class Tensors:
    """Items {"x": (x[i] - shift) * scale as float32 [C, H, W], "y": int64 0-d}; no "y" without labels.

    Attributes:
        x: [N, C, H, W] of any dtype; bytes stay bytes until an item is read.
        y: int64 labels [N], or None.
        fingerprint: sha256 (hex) of the items' content.
        shift, scale: of the values of x, see above.
    """

    x: Tensor
    y: Tensor | None
    fingerprint: str
    shift: float = 0.0
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        x = (self.x[i].float() - self.shift) * self.scale
        return {"x": x} if self.y is None else {"x": x, "y": self.y[i]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        return self[torch.tensor(rows)]


def check_labels(where: str, labels: Tensor, classes: int | None) -> int:
    """Check labels, and return the number of classes.

    Args:
        where: what the labels are of, for the message.
        labels: integers [N].
        classes: the number given; None for the highest label + 1.

    Raises:
        UserError: for labels outside 0 .. classes - 1.
    """
    if classes is not None and classes < 1:
        raise UserError(f"{where}: num_classes is {classes}; it must be at least 1, or None for the highest label + 1")
    low, high = int(labels.min()), int(labels.max())
    if classes is None and high >= MOST_CLASSES:  # a damaged label: lists of so many classes would fill the memory
        raise UserError(f"{where}: labels run to {high}; give num_classes if there are more than {MOST_CLASSES:,}")
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 to {classes - 1}" if classes else "0 and up"
        raise UserError(f"{where}: labels run from {low} to {high}; allowed: {allowed}")
    return classes or high + 1


def check_split(split: str) -> None:
    """Raise UserError for what is neither "train" nor "test".

    Args:
        split: as it was given.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}. Allowed: {', '.join(SPLITS)}.")


def hold_out(where: str, split: str, n: int, holdout: float, labels: Sequence[int] | None = None) -> list[int]:
    """Return the indices of a split, in ascending order; at least one is held out unless the share is 0.

    A warning names the labels, from 0 to the highest, of which "train" has no item.

    Args:
        where: what the items are of, for the message.
        split: "train" or "test".
        n: number of items.
        holdout: the share held out for "test".
        labels: class of each item; the split then keeps the classes' shares.

    Raises:
        UserError: if the split is unknown or has no item.
    """
    rows = split_indices(split, n, max(1, round(n * holdout)) if holdout else 0, labels)
    if not rows and split == "test":
        raise UserError(f"{where}: nothing is held out for testing; set holdout to a share above 0")
    if not rows:
        raise UserError(f"{where}: all of its {n} items are held out for testing; it needs more, or a smaller holdout")
    if (
        split == "train"
        and labels is not None
        and (bare := sorted({*range(max(labels) + 1)} - {labels[i] for i in rows}))
    ):
        shown = ", ".join(map(str, bare[:20])) + (", ..." if len(bare) > 20 else "")
        warnings.warn(
            f"{where}: nothing to train the labels {shown} on: they have no item, or all of theirs are held "
            "out for testing",
            stacklevel=3,
        )
    return rows


def split_indices(split: str, n: int, held_out: int, labels: Sequence[int] | None = None) -> list[int]:
    """Return the indices, in ascending order, of a split of which exactly `held_out` items are "test".

    Within a class the order is that of derive("holdout", i), so the split needs no random generator and never changes;
    classes stand one after another and every (n / held_out)-th item is held out: a class's share is right to one item.

    Args:
        split: "train" or "test".
        n: number of items.
        held_out: number of items of "test".
        labels: class of each item; None for one class.

    Raises:
        UserError: if the split is unknown.
    """
    check_split(split)
    labels = [0] * n if labels is None else labels
    order = sorted(range(n), key=lambda i: (labels[i], derive("holdout", i)))
    test = {i for k, i in enumerate(order) if (k + 1) * held_out // n > k * held_out // n}
    return [i for i in range(n) if (i in test) == (split == "test")]


def content_hash(*parts: Tensor | str) -> str:
    """Return the sha256 (hex) over tensors (dtype, shape, bytes) and words, in order.

    Args:
        *parts: tensors on the CPU and words.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {list(part.shape)} ".encode())
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()
