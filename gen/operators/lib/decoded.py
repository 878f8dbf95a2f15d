"""An operator that measures the pictures of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.operators.lib.operator import Operator

__all__ = ["Decoded"]


class Decoded(Operator):
    """y = A decode(z), which is not linear: methods that need more than its derivative refuse it.

    Args:
        shape: of one sample's latents z.
        decode: z [B, *shape] -> pictures [B, C, H, W], differentiable.
        spec: of A, an object with `on`, or an Operator of pictures.
        like: a tensor of the dtype and on the device of latents.
    """

    linear: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...], decode: Callable[[Tensor], Tensor], spec: Any, like: Tensor) -> None:
        with torch.no_grad():
            pictures = tuple(decode(like.new_zeros(1, *shape)).shape[1:])
        self.decode, self.of = decode, spec if hasattr(spec, "measured") else spec.on(pictures)
        super().__init__(shape, self.of.measured)

    def A(self, x: Tensor) -> Tensor:
        return self.of.A(self.decode(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            pictures = self.decode(x)
        return torch.autograd.grad(pictures, x, self.of.vjp(pictures.detach(), v))[0]
