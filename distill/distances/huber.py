"""The pseudo-Huber distance, element by element or of the whole sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["Huber"]


@dataclass(frozen=True)
class Huber:
    """The mean of sqrt(e^2 + c^2) - c over the elements e of the difference (Rectified Diffusion, Wang et al. 2024).

    Attributes:
        c: the error up to which it is a square; the paper's. Of per = "sample" it is that of the norm: 0.00054 d in
            rf++'s code, 0.00054 sqrt(d) in iCT (Song & Dhariwal 2024).
        per: "element", or "sample", which has the norm of the whole difference for e, and is divided by the number of
            elements d.
    """

    c: float = 0.001
    per: Literal["element", "sample"] = "element"

    def __post_init__(self) -> None:
        check_fields(self, c="(0, inf)")
        if self.per not in ("element", "sample"):
            raise UserError(f"Huber: per = {self.per!r}; allowed: element, sample")

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        square = ((output - target) ** 2).flatten(1)  # [B, d]
        if self.per == "element":
            return ((square + self.c**2).sqrt() - self.c).mean(1)
        return ((square.sum(1) + self.c**2).sqrt() - self.c) / square.shape[1]
