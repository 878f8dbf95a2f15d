"""The complete arguments of norm_rope, which every back end is given."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["NormRopeCall", "Pairs"]

Pairs = Literal["adjacent", "split"]


class NormRopeCall(NamedTuple):
    """The RMS norm of each head, if there is a gain, and then its rotation, if there are tables.

    Attributes:
        x: heads [B, N, H, d].
        gain: of the norm, [d], or None.
        eps: added to the mean square.
        cos, sin: of the angle of each position and channel, [N, d] or [B or 1, N, d], or None.
        pairs: which channels rotate together: 2 i and 2 i + 1, or i and i + d / 2.
    """

    x: Tensor
    gain: Tensor | None
    eps: float
    cos: Tensor | None
    sin: Tensor | None
    pairs: Pairs
