"""A mixer that reads tokens in their order, in both directions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Both"]


class Both(nn.Module):
    """The sum of a mixer over h [B, T, width] and of one over h from its last token to its first.

    Args:
        make: builds one.
        shared: one mixer for both, so that h turned round gives the output turned round, instead of two.
    """

    def __init__(self, make: Callable[[], nn.Module], shared: bool):
        super().__init__()
        self.ahead = make()
        self.back = None if shared else make()

    def forward(self, h: Tensor, rope: None = None) -> Tensor:
        back = self.ahead if self.back is None else self.back
        out: Tensor = self.ahead(h) + back(h.flip(1)).flip(1)
        return out
