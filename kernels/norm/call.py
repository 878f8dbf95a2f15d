"""The complete arguments of the norms, which every back end is given."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["GatedResidualCall", "GatedResidualNormCall", "ModulatedNormCall", "NormKind"]

NormKind = Literal["layer", "rms"]


class ModulatedNormCall(NamedTuple):
    """norm(x) (1 + scale) + shift.

    Attributes:
        x: [B, N, D].
        scale, shift: [B, 1 or N, D].
        gain: of the norm, [D], or None.
        kind: "layer" or "rms".
        eps: added to the variance or the mean square.
    """

    x: Tensor
    scale: Tensor
    shift: Tensor
    gain: Tensor | None
    kind: NormKind
    eps: float


class GatedResidualCall(NamedTuple):
    """x + gate y.

    Attributes:
        x, y: [B, N, D].
        gate: [B, 1 or N, D].
    """

    x: Tensor
    y: Tensor
    gate: Tensor


class GatedResidualNormCall(NamedTuple):
    """x + gate y and its modulated norm; the fields are those of the two other calls."""

    x: Tensor
    y: Tensor
    gate: Tensor
    scale: Tensor
    shift: Tensor
    gain: Tensor | None
    kind: NormKind
    eps: float

    def residual(self) -> GatedResidualCall:
        """Return the call of the first half."""
        return GatedResidualCall(self.x, self.y, self.gate)

    def norm(self, x: Tensor) -> ModulatedNormCall:
        """Return the call of the second half, for the residual sum x."""
        return ModulatedNormCall(x, self.scale, self.shift, self.gain, self.kind, self.eps)
