"""The pseudo-Huber distance, element by element or of the whole sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError

__all__ = ["Huber"]


@dataclass(frozen=True)
class Huber:
    """The mean of sqrt(e^2 + c^2) - c over the elements e of the difference (Rectified Diffusion, Wang et al. 2024).

    per: "sample" has the norm of the whole difference for e (rf++, iCT), and is divided by the number of elements d; c
    is then that of the norm: 0.00054 d in rf++'s code, 0.00054 sqrt(d) in iCT (Song & Dhariwal 2023).
    """

    c: float = 0.001
    per: Literal["element", "sample"] = "element"

    def __post_init__(self) -> None:
        if not self.c > 0 or self.per not in ("element", "sample"):
            raise UserError(f"Huber: c = {self.c}, per = {self.per!r}; c must be positive, per: element or sample")

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """x [B, ...] twice -> [B]."""
        square = ((ours - theirs) ** 2).flatten(1)  # [B, d]
        if self.per == "element":
            return ((square + self.c**2).sqrt() - self.c).mean(1)
        return ((square.sum(1) + self.c**2).sqrt() - self.c) / square.shape[1]
