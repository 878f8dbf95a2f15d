"""Half log-SNR as a coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.path import Flow, NoisePath
from gen.diffusion.tap import Context

__all__ = ["Lam"]


@dataclass(frozen=True)
class Lam:
    """Half log-SNR lam = log(alpha / sigma), as limit tanh(lam / limit), because it is infinite at a path's ends.

    Attributes:
        path: the one that the model was trained on.
        limit: well above the |lam| that matter, which it leaves as they are.
    """

    path: NoisePath = part("diffusion.path", default=Flow())
    limit: float = 8.0

    def __post_init__(self) -> None:
        check_fields(self, limit="(0, inf)")

    def value(self, context: Context) -> float:
        lam = float(self.path.lam(torch.tensor(context.t, dtype=torch.float64)))
        return self.limit * math.tanh(lam / self.limit)
