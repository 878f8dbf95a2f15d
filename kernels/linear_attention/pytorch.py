"""Linear attention in two products of PyTorch; differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

__all__ = ["refuses", "run"]


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    return None


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.softmax(-2).mT @ v)
