"""Reparameterised: a network trained on one path as one of another path, exactly; EDM's as a velocity on flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond
from gen.diffusion.parameterisation import EDMPrecond, Parameterisation, Velocity
from gen.diffusion.path import EDM, Flow, NoisePath, expand
from gen.diffusion.tap import Tap
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["Reparameterised", "ReparameterisedNet"]


@dataclass(frozen=True)
class Reparameterised(WrapperSpec):
    """The inner network, trained on `path` in `parameterisation`, as one of to_path that predicts to_parameterisation.

    At equal sigma / alpha the two paths' x differ by a factor and their E[x0 | x] are one, so nothing is approximated:
    v(x, t) = (x - D(x / (1 - t), t / (1 - t))) / t is rf++'s start from an EDM denoiser D (Lee et al. 2024, prop. 1).
    Presets: DiT's.

    Attributes:
        path, parameterisation: of the inner network's training.
        to_path: path of the result, one that passes t itself to its networks: flow, trig or vp.
        to_parameterisation: prediction of the result, one that does not scale x: all but edm_precond.
        reach: noise levels with sigma / alpha below 1 / reach or above it, and those beyond `path`, count as the last
            one; rf++ clips t to [1e-5, 1 - 1e-5], which is sigma_max = reach = 1e5.
    """

    path: NoisePath = part("diffusion.path", default=EDM())
    parameterisation: Parameterisation = part("diffusion.parameterisation", default=EDMPrecond())
    to_path: NoisePath = part("diffusion.path", default=Flow())
    to_parameterisation: Parameterisation = part("diffusion.parameterisation", default=Velocity())
    reach: float = 1e5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, reach="(1, inf)")
        probe = torch.tensor([0.25, 0.5], dtype=torch.float64, device="cpu")
        scales = self.to_parameterisation.scale(self.to_path, probe)
        if not torch.equal(self.to_path.t_to_network(probe), probe) or not bool((scales == 1).all()):
            raise UserError(
                f"Reparameterised: to_path = {self.to_path}, to_parameterisation = {self.to_parameterisation}; allowed "
                "are the paths flow, trig and vp, and every parameterisation but edm"
            )

    def build(self) -> ReparameterisedNet:
        """Return a fresh network."""
        return ReparameterisedNet(self)


class ReparameterisedNet(Wrapper):
    """net(x [B, ...] on to_path, t [B] of to_path, cond) -> the prediction of to_parameterisation, like x."""

    def __init__(self, spec: Reparameterised):
        super().__init__(spec)
        self.inner = spec.inner.build()
        top = torch.tensor(spec.path.t1, dtype=torch.float64, device="cpu")
        self.least = max(float(spec.path.lam(top)), -math.log(spec.reach))  # half log-SNR of the most noise

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if t.shape != x.shape[:1]:
            raise UserError(f"t has shape {list(t.shape)}; for this x it must be [{len(x)}]")
        if s is not None:
            raise UserError("a target time s was given, but a reparameterised network is no flow map and takes only t")
        scale, skip, gain, inner_t = self.coefficients(t)
        out: Tensor = self.inner(expand(scale, x) * x, self.spec.path.t_to_network(inner_t).to(t.dtype), cond, tap=tap)
        return expand(skip, x) * x + expand(gain, x) * out

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the factor on x for the inner network, then skip and gain, and the inner path's time; float64 [B].

        Both predictions are a x0 + b eps; the one in terms of x and of the other is skip x + gain out.
        """
        spec = self.spec
        lam = spec.to_path.lam(t.double().clamp(0, spec.to_path.t1)).clamp(self.least, math.log(spec.reach))
        outer_t, inner_t = spec.to_path.t_from_lambda(lam), spec.path.t_from_lambda(lam)
        a, b = spec.parameterisation.coefficients(spec.path, inner_t)
        det = spec.parameterisation.det(spec.path, inner_t)
        to_a, to_b = spec.to_parameterisation.coefficients(spec.to_path, outer_t)
        alpha, sigma = spec.path.alpha(inner_t), spec.path.sigma(inner_t)
        ratio = alpha / spec.to_path.alpha(outer_t)  # of the inner path's x to x
        skip, gain = ratio * (to_a * b - to_b * a) / det, (to_b * alpha - to_a * sigma) / det
        return ratio * spec.parameterisation.scale(spec.path, inner_t), skip, gain, inner_t
