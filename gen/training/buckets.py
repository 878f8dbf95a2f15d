"""Data in buckets: items of several shapes, of which a step's batch has one (gen.training.order.BucketOrder)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.data import DataSet, DataSource
from gen.diffusion.net import takes_shape

__all__ = ["batches_of_one_shape", "bucket_note", "check_size", "shape_of_items", "sizes_of"]


def shape_of_items(source: DataSource, data: DataSet) -> tuple[int, ...]:
    """Return the shape of one x; of data in buckets that which the source states.

    Args:
        source: of the data.
        data: opened.
    """
    return tuple(data[0]["x"].shape if getattr(data, "buckets", None) is None else source.shape)


def sizes_of(data: Any) -> list[list[int]]:
    """Return height and width of every bucket that has items; [] without buckets.

    Args:
        data: opened.
    """
    counts: dict[str, int] = data.bucket_counts() if hasattr(data, "bucket_counts") else {}
    return [[int(side) for side in name.split("x")] for name in counts]


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
        note += (
            f"; a batch of {batch_size} repeats the pictures of {', '.join(few)}: a smaller batch_size, or a larger "
            "data.buckets, which makes fewer buckets, would not"
        )
    return note


def check_size(name: str, spec: Any, info: Json, shape: tuple[int, ...]) -> None:
    """Check that a model has samples of a shape; a warning for a size that it was not trained at.

    Args:
        name: of the model.
        spec: of its network.
        info: manifest of its checkpoint: "shape", and "sizes" of the buckets that had items.
        shape: of a sample.

    Raises:
        UserError: for a shape that the network does not take.
    """
    size = f"{shape[1]}x{shape[2]}"
    if list(shape) != info["shape"] and not takes_shape(spec, shape):
        step = getattr(spec, "size_step", None)
        near = "x".join(str(-(-side // step) * step) for side in shape[1:]) if step else ""
        allowed = f"heights and widths that are multiples of {step}, such as {near}" if step else "no other size"
        raise UserError(f"{name} was trained at {info['shape']}: not {size}, it takes {allowed}")
    sizes = info.get("sizes") or [info["shape"][1:]]
    if list(shape[1:]) not in sizes:
        known = ", ".join(f"{one}x{other}" for one, other in sizes)
        warnings.warn(f"{name} was trained at {known} alone: at {size} its samples may be of no use", stacklevel=4)
