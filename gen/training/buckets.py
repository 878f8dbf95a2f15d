"""Data in buckets: items of several shapes, of which a step's batch has one (gen.training.order.BucketOrder)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gen.config.spec import Json
from gen.data import DataSet, DataSource

__all__ = ["batches_of_one_shape", "bucket_note", "shape_of_items"]


def shape_of_items(source: DataSource, data: DataSet) -> tuple[int, ...]:
    """Return the shape of one x; of data in buckets that which the source states.

    Args:
        source: of the data.
        data: opened.
    """
    return tuple(data[0]["x"].shape if getattr(data, "buckets", None) is None else source.shape)


def batches_of_one_shape(items: Sequence[Json], size: int) -> list[list[Json]]:
    """Return items in batches of one shape of x each, the shapes in the order in which they first come.

    Args:
        items: with "x".
        size: most items of a batch.
    """
    by_shape: dict[tuple[int, ...], list[Json]] = {}
    for item in items:
        by_shape.setdefault(tuple(item["x"].shape), []).append(item)
    return [same[i : i + size] for same in by_shape.values() for i in range(0, len(same), size)]


def bucket_note(data: Any, batch_size: int) -> str:
    """Return what is said of the buckets when a training starts; "" without buckets.

    Args:
        data: opened.
        batch_size: items of a step.
    """
    counts: dict[str, int] = data.bucket_counts() if hasattr(data, "bucket_counts") else {}
    few = [name for name, count in counts.items() if count < batch_size]
    note = "" if not counts else "buckets: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    if few:
        note += f"; a batch of {batch_size} repeats the pictures of {', '.join(few)}"
    return note
