"""Half log-SNR as a coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gen.errors import UserError
from gen.path import Flow
from gen.spec import build, part
from gen.tap import Context

__all__ = ["Lam"]


@dataclass(frozen=True)
class Lam:
    """log(alpha / sigma) of the evaluation's time on a path, kept within +- clip, since it is infinite at the ends."""

    path: Any = part("path", default=Flow())
    clip: float = 6.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", build("path", self.path))
        if not self.clip > 0:
            raise UserError(f"Lam: clip = {self.clip}; it must be positive")

    def place(self, context: Context) -> float:
        lam = float(self.path.lam(torch.tensor(context.t, dtype=torch.float64)))
        return min(max(lam, -self.clip), self.clip)
