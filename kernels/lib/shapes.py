"""Checks of shapes that several ops make."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_shapes"]


def check_shapes(op: str, wanted: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raise ValueError unless each tensor has its shape.

    Args:
        op: whose arguments they are, for the message.
        wanted: name -> (tensor, shape).
    """
    for name, (given, shape) in wanted.items():
        # One size at a time: sizes may be symbols of a graph that is being traced.
        if given.ndim != len(shape) or any(a != b for a, b in zip(given.shape, shape, strict=True)):
            raise ValueError(f"{op}: {name} is {list(given.shape)}; it must be {list(shape)}")
