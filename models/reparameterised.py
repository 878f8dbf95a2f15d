"""Reparameterised: a network trained on one path as one of another path, exactly; EDM's as a velocity on flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.parameterisation import EDMPrecond, Velocity
from gen.diffusion.path import EDM, Flow, expand
from gen.diffusion.tap import Tap
from gen.models.dit import DiT
from gen.models.layers.wrapper import Wrapper

__all__ = ["Reparameterised", "ReparameterisedNet"]


@dataclass(frozen=True)
class Reparameterised:
    """inner, trained on `path` to predict `param`, as a network of to_path that predicts to_parameterisation.

    At equal sigma / alpha the two paths' x differ by a factor and their E[x0 | x] are one, so nothing is approximated:
    v(x, t) = (x - D(x / (1 - t), t / (1 - t))) / t is rf++'s start from an EDM denoiser D (Lee et al. 2024, prop. 1).
    Noise levels beyond those of `path`, and below sigma / alpha = 1 / reach, count as the last one: rf++'s own clip of
    t to [1e-5, 1 - 1e-5] is sigma_max = reach = 1e5. to_path must tell its networks t itself, and to_parameterisation
    must not scale x: allowed are flow, trig and vp, and all but edm.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"inner": DiT.preset(name)} for name in DiT.presets}

    inner: Any = part("models", default=DiT())
    path: Any = part("diffusion.path", default=EDM())
    parameterisation: Any = part("diffusion.parameterisation", default=EDMPrecond())
    to_path: Any = part("diffusion.path", default=Flow())
    to_parameterisation: Any = part("diffusion.parameterisation", default=Velocity())
    reach: float = 1e5

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", build("models", self.inner))
        probe = torch.tensor([0.25, 0.5], dtype=torch.float64, device="cpu")
        if not torch.equal(self.to_path.t_to_network(probe), probe) or not bool(
            (self.to_parameterisation.scale(self.to_path, probe) == 1).all()
        ):
            raise UserError(
                f"Reparameterised: to_path = {self.to_path}, to_parameterisation = {self.to_parameterisation}; allowed "
                "are the paths flow, trig and vp, and every parameterisation but edm"
            )
        if not self.reach > 1:
            raise UserError(
                f"Reparameterised: reach = {self.reach}; it is the largest and the inverse of the least sigma / alpha"
            )

    @property
    def size(self) -> int:
        return int(self.inner.size)

    @property
    def channels(self) -> int:
        return int(self.inner.channels)

    @property
    def classes(self) -> int:
        return int(self.inner.classes)

    @staticmethod
    def preset(name: str, **changes: Any) -> Reparameterised:
        """DiT's preset of this name inside; changes that are no fields of Reparameterised are the DiT's."""
        own = {f.name: changes.pop(f.name) for f in fields(Reparameterised) if f.name in changes}
        return replace(Reparameterised(DiT.preset(name, **changes)), **own)

    def build(self) -> ReparameterisedNet:
        """The network, freshly initialised."""
        return ReparameterisedNet(self)


class ReparameterisedNet(Wrapper):
    """net(x [B, ...] on to_path, t [B] of to_path, cond) -> what to_parameterisation predicts, like x.

    The sites of a tap are the inner network's. load_state_dict also takes the weights of an inner network alone.
    """

    def __init__(self, spec: Reparameterised):
        super().__init__()
        self.spec = spec
        self.inner = spec.inner.build()
        top = torch.tensor(spec.path.t1, dtype=torch.float64, device="cpu")
        self.least = max(float(spec.path.lam(top)), -math.log(spec.reach))  # half log-SNR of the most noise
        self.register_load_state_dict_pre_hook(_load_inner_only)  # type: ignore[no-untyped-call]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        if t.shape != x.shape[:1]:
            raise UserError(f"t has shape {list(t.shape)}; for this x it must be [{len(x)}]")
        if s is not None:
            raise UserError("a target time s was given, but a reparameterised network is no flow map and takes only t")
        scale, skip, gain, there = self.coefficients(t)
        told = self.spec.path.t_to_network(there).to(t.dtype)
        out: Tensor = self.inner(expand(scale, x) * x, told, cond, tap=tap)
        return expand(skip, x) * x + expand(gain, x) * out

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float64 [B]: the factor on x for the inner network, then skip and gain, and the time on the inner path.

        Both predictions are a x0 + b eps; the one in terms of x and of the other is skip x + gain out.
        """
        spec = self.spec
        lam = spec.to_path.lam(t.double().clamp(0, spec.to_path.t1)).clamp(self.least, math.log(spec.reach))
        here, there = spec.to_path.t_from_lambda(lam), spec.path.t_from_lambda(lam)
        (a, b), det = spec.parameterisation.coefficients(spec.path, there), spec.parameterisation.det(spec.path, there)
        to_a, to_b = spec.to_parameterisation.coefficients(spec.to_path, here)
        alpha, sigma = spec.path.alpha(there), spec.path.sigma(there)
        ratio = alpha / spec.to_path.alpha(here)  # of x there to x here
        skip, gain = ratio * (to_a * b - to_b * a) / det, (to_b * alpha - to_a * sigma) / det
        return ratio * spec.parameterisation.scale(spec.path, there), skip, gain, there


def _load_inner_only(net: ReparameterisedNet, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Puts the weights of an inner network alone in their place."""
    own = {f"{prefix}{name}" for name in net.inner.state_dict()}
    if own == {name for name in state if name.startswith(prefix)}:
        for name in own:
            state[f"{prefix}inner.{name.removeprefix(prefix)}"] = state.pop(name)
