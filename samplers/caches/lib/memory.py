"""Memory of one cached site: snapshots of a feature, and the coordinates at which each row of the batch took them.

Every predictor is linear in the snapshots, so a predictor is only a rule for weights: plain arithmetic on a few floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.samplers.caches.lib.parts import FeaturePredictor, Rows

__all__ = ["Memory", "select"]

T = TypeVar("T")


def select(rows: Rows, yes: Tensor, no: Tensor) -> Tensor:
    """Choose `yes` or `no` row by row.

    Args:
        rows: True for rows of `yes`; one decision may stand for all rows.
        yes, no: [B, ...].
    """
    if all(rows):
        return yes
    if not any(rows):
        return no
    return torch.where(torch.tensor(rows, device=yes.device).reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)


@dataclass(frozen=True, eq=False)
class Memory:
    """Snapshots of one feature, as a value.

    They are held as the newest one and the rises from each older one to the next, because then a feature that does not
    change is predicted to the bit.

    Attributes:
        nodes: for each row the coordinates of its snapshots, newest first; one entry if all rows are alike.
        newest: the newest snapshot [B, ...], in float32 or wider; None before the first.
        rises: differences between snapshots, newest first, as `newest`.
        dtype: in which the feature was given.
    """

    nodes: tuple[tuple[float, ...], ...] = ()
    newest: Tensor | None = None
    rises: tuple[Tensor, ...] = ()
    dtype: torch.dtype = torch.float32

    def __bool__(self) -> bool:
        return self.newest is not None

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.newest, *self.rises) if tensor is not None)

    def take(self, index: Tensor) -> Memory:
        """Return the memory of some rows, by their indices, int64."""
        nodes = tuple(self.nodes[i] for i in index.tolist()) if len(self.nodes) > 1 else self.nodes
        parts = [None if value is None else value[index.to(value.device)] for value in (self.newest, *self.rises)]
        return Memory(nodes, parts[0], tuple(rise for rise in parts[1:] if rise is not None), self.dtype)

    def update(self, x: float, feature: Tensor, rows: Rows, size: int) -> Memory:
        """Return the memory with the feature [B, ...] at x added for the rows that are True, `size` snapshots long."""
        feature, dtype = feature.detach(), feature.dtype
        feature = feature.to(torch.promote_types(dtype, torch.float32))
        if self.newest is None:
            return Memory(((x,),) * len(rows), feature, (), dtype)
        if feature.shape != self.newest.shape:
            was, now = list(self.newest.shape), list(feature.shape)
            raise UserError(f"a cached feature changed its shape from {was} to {now}; start one session for each batch")
        n = max(len(rows), len(self.nodes))
        rows, nodes = _spread(rows, n), _spread(self.nodes, n)
        if any(row and x == own[0] for row, own in zip(rows, nodes, strict=True)):
            raise UserError(f"two steps of a loop have the same coordinate, {x:g}: no predictor can tell them apart")
        older = self.rises
        if size > 1:
            shifted = (feature - self.newest, *older)
            fill = torch.zeros_like(self.newest) if not all(rows) and len(older) < size - 1 else shifted[0]
            older = tuple(select(rows, a, b) for a, b in zip(shifted, (*older, fill), strict=True))[: size - 1]
        nodes = tuple((x, *own)[:size] if row else own for own, row in zip(nodes, rows, strict=True))
        return Memory(nodes, select(rows, feature, self.newest), older, dtype)

    def predict(self, x: float, predictor: FeaturePredictor) -> Tensor:
        """Return the feature [B, ...] at x, in the dtype in which it was given."""
        assert self.newest is not None, "nothing was remembered"
        lags = {nodes: _lags(predictor.weights(nodes, x)) for nodes in set(self.nodes)}
        out = self.newest
        if len(lags) == 1:
            for lag, rise in zip(next(iter(lags.values())), self.rises, strict=False):
                out = torch.add(out, rise, alpha=lag) if out is self.newest else out.add_(rise, alpha=lag)
            return out.to(self.dtype)
        width = len(self.rises)
        table = [[*lags[nodes], *[0.0] * width][:width] for nodes in self.nodes]
        factors = torch.tensor(table, dtype=out.dtype, device=out.device)  # [B, rises]
        for k, rise in enumerate(self.rises):
            out = out + factors[:, k].reshape(-1, *(1,) * (out.ndim - 1)) * rise
        return out.to(self.dtype)


def _lags(weights: Sequence[float]) -> list[float]:
    """Factors on the rises: with f_k = f_0 - sum_(j <= k) rise_j, the j-th rise has -sum_(k >= j) w_k."""
    return [-sum(weights[j:]) for j in range(1, len(weights))]


def _spread(values: Sequence[T], n: int) -> Sequence[T]:
    """One value for all rows as one for each of n."""
    return values if len(values) == n else [*values] * n
