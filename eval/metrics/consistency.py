"""Distance between what is measured of a restoration and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import name_of, part
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import images_at_once, mean_over_images
from gen.operators.lib.operator import OperatorSpec
from gen.operators.pool import Pool

__all__ = ["Consistency"]


@dataclass(frozen=True)
class Consistency:
    """The mean over images of the root mean square of A x - y, pictures being in [-1, 1].

    Samples of a posterior have, as the truth, the deviation of the measurements' noise; less is a fit of the noise.
    Pixels of 8 bits alone are worth .0023 of each.

    Attributes:
        operator: of gen.operators, A.
        noise: deviation of the measurements' noise, by which the distance is divided; None for the distance itself.
    """

    columns: ClassVar = (
        Column(
            "consistency",
            "Consistency",
            higher_is_better=None,
            note="root mean square distance to the measurement, over its noise's deviation if that is given",
            priority=10,
        ),
    )
    needs: ClassVar = "measured"
    default: ClassVar = False
    named: ClassVar = True

    operator: Any = part("operators", kinds=(OperatorSpec,), default=Pool())
    noise: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, noise="(0, inf)")

    def __call__(self, samples: Tensor, measured: Tensor) -> Estimate:
        """Compute it from uint8 images [N, C, H, W] and their measurements [N, *measured]."""
        if samples.ndim != 4 or not len(samples):
            raise UserError(f"consistency: images {list(samples.shape)}; allowed: [N, C, H, W]")
        A = self.operator.on(tuple(samples.shape[1:]))
        if tuple(measured.shape) != (len(samples), *A.measured):
            name = name_of(type(self.operator))
            raise UserError(
                f"consistency: measurements {list(measured.shape)}; {name} has {[len(samples), *A.measured]}"
            )

        def distance(x: Tensor, y: Tensor) -> Tensor:
            gap = A.A(x.double() / 127.5 - 1) - y.double()
            return (gap**2).flatten(1).mean(1).sqrt() / (self.noise or 1.0)

        return mean_over_images(distance, samples, measured, images_at_once(samples))
