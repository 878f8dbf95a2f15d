"""Values that parts of a sample use of each other in one evaluation: fresh, or of the step before."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from gen.kernels.sequence_parallel.patches import PatchExchange, Surroundings, around

__all__ = ["Evaluation", "key_surroundings"]

T = TypeVar("T")


@dataclass
class Evaluation:
    """One evaluation of the network in a loop.

    Attributes:
        stale: how to wait for what was sent by the last evaluation of this branch and stage, by operation, until this
            one sends its own.
        synchronous: whether this one waits for fresh values.
        keep: whether a later evaluation may use what it sends.
    """

    stale: dict[Hashable, Callable[[], Any]]
    synchronous: bool
    keep: bool

    def pop(self, key: Hashable) -> Callable[[], Any] | None:
        """Return how to wait for stale values of an operation; None where fresh ones are to be waited for."""
        return None if self.synchronous else self.stale.pop(key, None)

    def exchanged(self, key: Hashable, start: Callable[[], Callable[[], T]]) -> tuple[T, bool]:
        """Return what an operation uses of other parts, and whether it is fresh.

        Args:
            key: of the operation.
            start: begins to send this process's values, and returns how to wait for the others'.
        """
        arriving = self.pop(key)
        if arriving is None:  # synchronous, or the first evaluation of its branch
            fresh = start()()
            if self.keep:
                self.stale[key] = lambda: fresh
            return fresh, True
        values = arriving()
        if self.keep:
            self.stale[key] = start()
        return values, False


def key_surroundings(
    now: Evaluation, exchange: PatchExchange, key: Hashable, kv: Tensor, portion: float | None
) -> tuple[list[Surroundings], float | None]:
    """Return keys and values before and after each part of this process, and the portion of neighbours that they are.

    Args:
        now: the evaluation.
        exchange: between parts.
        key: of the attention.
        kv: this process's own, [B, n, 2, H, d].
        portion: of a neighbour's that is attended to where they are stale; None for all of all parts.
    """
    arriving = now.pop(key)
    if arriving is not None:
        surroundings = arriving()
        if now.keep:
            now.stale[key] = exchange.start(kv, portion)
        return surroundings, portion
    whole = exchange.gather(kv)
    if now.keep:
        kept = [around(whole, part, exchange.parts, portion) for part in exchange.own]
        now.stale[key] = lambda: kept
    return [around(whole, part, exchange.parts, None) for part in exchange.own], None
