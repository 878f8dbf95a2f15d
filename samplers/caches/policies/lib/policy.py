"""What policies share: the questions that a run asks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.diffusion.tap import Context

__all__ = ["Policy", "distance"]

Rows = Sequence[bool]


class Policy:
    """When to compute. Its state is a value, one for each branch and stage, so one policy serves any number of runs.

    probe: the site whose value decides; "" for what is decided before the network runs. early: the probe's input is
    enough, and the probe itself is cached too. check: sites of which the last one verifies what was put in place of
    the rest.
    """

    probe: ClassVar[str] = ""
    early: ClassVar[bool] = False
    check: ClassVar[str] = ""

    def init(self) -> Any:
        """The state before a branch's first evaluation, at which everything must be computed."""
        return None

    def decide(self, context: Context, state: Any, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Any]:
        """Which rows are to be computed, and the next state. One entry, if the decision is the same for all rows.

        h, out: the probe's input and output [B, ...], as far as they are known; None without a probe.
        """
        raise NotImplementedError

    def verify(self, context: Context, state: Any, draft: Tensor, real: Tensor) -> Any:
        """The next state after the check: what was predicted for the last site, and what it computed, [B, ...]."""
        return state


def distance(a: Tensor, b: Tensor) -> list[float]:
    """mean |a - b| / mean |b| over each row of [B, ...]: of one row alone, so that none depends on its batch."""
    off = (a - b).abs().flatten(1).mean(1, dtype=torch.float64)
    size = b.abs().flatten(1).mean(1, dtype=torch.float64)
    return torch.where(off == 0, off, off / size).tolist()
