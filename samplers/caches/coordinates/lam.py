"""Half log-SNR as a coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.tap import Context

__all__ = ["Lam"]


@dataclass(frozen=True)
class Lam:
    """Half log-SNR lam = log(alpha / sigma) of the path in use, as limit tanh(lam / limit): it is infinite at the ends.

    Attributes:
        limit: well above the |lam| that matter, which it leaves as they are.
    """

    limit: float = 8.0

    def __post_init__(self) -> None:
        check_fields(self, limit="(0, inf)")

    def value(self, context: Context) -> float:
        if math.isnan(context.lam):
            raise UserError("Lam: this loop does not say the log-SNR of its evaluations; allowed here: step, t")
        return self.limit * math.tanh(context.lam / self.limit)
