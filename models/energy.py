"""Energy: any denoiser as the gradient of a scalar, so that samples can be compared by a density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["Energy", "EnergyNet"]


@dataclass(frozen=True)
class Energy(WrapperSpec):
    """The gradient of <x, o(x)> / 2, o(x) the inner network's output: (o + J^T x) / 2 with J the Jacobian of o.

    In every parameterisation that is the same as doing it to the noise it predicts, eps: the density's logarithm is
    -<x, eps(x)> / (2 sigma) up to a constant, its score -eps / sigma. Whatever is linear in x, as a Gaussian's own
    denoiser, stays as it is, so a trained denoiser is a good start. (Energies from denoisers: Salimans & Ho 2021; Du et
    al. 2023.) A call costs a backward pass too. Presets: DiT's.
    """

    def build(self) -> EnergyNet:
        """Return a fresh network."""
        return EnergyNet(self)


class EnergyNet(Wrapper):
    """net(x, t, cond) -> like x, the gradient of net.potential(x, t, cond) [B]; under no_grad too."""

    def __init__(self, spec: Energy):
        super().__init__(spec)
        self.inner = spec.inner.build()

    def potential(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Return <x, o(x)> / 2 of each row, [B]."""
        return (x * self.inner(x, t, cond, s=s, tap=tap)).flatten(1).sum(1) / 2

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        differentiable = torch.is_grad_enabled()
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            point = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            potential = self.potential(point, t, cond, s=s, tap=tap)
            (gradient,) = torch.autograd.grad(potential.sum(), point, create_graph=differentiable)
        return gradient
