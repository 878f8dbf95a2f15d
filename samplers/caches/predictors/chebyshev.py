"""A smoothing polynomial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.samplers.caches.predictors.lib.differences import Extrapolation

__all__ = ["Chebyshev"]


@dataclass(frozen=True)
class Chebyshev(Extrapolation):
    """The polynomial of least squares through the last `window` snapshots, in Chebyshev's basis (ChebBooster's idea).

    Exact to its degree on any spacing, as `newton` is; more snapshots than order + 1 average noise out instead of
    amplifying it. The basis, on the interval that holds the snapshots and x, only keeps the fit well conditioned.

    Attributes:
        order: of the polynomial.
        window: snapshots that it fits, more than `order`.
    """

    order: int = 2
    window: int = 4

    def __post_init__(self) -> None:
        check_fields(self, order="[0, window)")

    @property
    def size(self) -> int:
        return self.window

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        order = min(self.order, len(nodes) - 1)
        low, high = min(*nodes, x), max(*nodes, x)
        points = torch.tensor([*nodes, x], dtype=torch.float64)
        angle = (2 * (points - low) / ((high - low) or 1.0) - 1).clamp(-1, 1).acos()
        basis = (torch.arange(order + 1) * angle[:, None]).cos()  # [snapshots + 1, order + 1]: T_k at each point
        return (basis[-1] @ torch.linalg.pinv(basis[:-1])).tolist()
