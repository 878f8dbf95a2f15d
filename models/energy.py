"""Energy: any denoiser as the slope of a scalar, so that it has a density to compare samples by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.tap import Tap
from gen.models.dit import DiT
from gen.models.layers.wrapper import Wrapper

__all__ = ["Energy", "EnergyNet"]


@dataclass(frozen=True)
class Energy:
    """The inner network's output o(x), made the gradient of <x, o(x)> / 2; then it is (o + J^T x) / 2, J the Jacobian.

    In every parameterisation that is the same as doing it to the noise it predicts, eps: the density's logarithm is
    -<x, eps(x)> / (2 sigma) up to a constant, its score -eps / sigma. Whatever is linear in x, as a Gaussian's own
    denoiser, stays as it is, so a trained denoiser is a good place to begin. (Energies from denoisers: Salimans & Ho
    2021; Du et al. 2023.) A call costs a backward pass too.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"inner": DiT.preset(name)} for name in DiT.presets}

    inner: Any = part("models", default=DiT())

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", build("models", self.inner))
        if isinstance(self.inner, Energy):
            raise UserError("Energy.inner is an Energy already; give the denoiser that it has inside")

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
    def preset(name: str, **changes: Any) -> Energy:
        """The energy of DiT's preset of this name; changes that are no fields of an energy are the DiT's."""
        own = {f.name: changes.pop(f.name) for f in fields(Energy) if f.name in changes}
        return replace(Energy(DiT.preset(name, **changes)), **own)

    def build(self) -> EnergyNet:
        """The network, freshly initialised."""
        return EnergyNet(self)


class EnergyNet(Wrapper):
    """net(x, t, cond) -> like x, the gradient of net.potential(x, t, cond) [B]; under no_grad too.

    The sites of a tap are the inner network's. load_state_dict also takes the weights of an inner network alone.
    """

    def __init__(self, spec: Energy):
        super().__init__()
        self.spec = spec
        self.inner = spec.inner.build()
        self.register_load_state_dict_pre_hook(_load_inner_only)  # type: ignore[no-untyped-call]

    def potential(
        self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """<x, o(x)> / 2 of each row, [B]."""
        out = self.inner(x, t, cond, s=s, tap=tap)
        return (x * out).flatten(1).sum(1) / 2

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        further = torch.is_grad_enabled()
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            at = x if further and x.requires_grad else x.detach().requires_grad_()
            potential = self.potential(at, t, cond, s=s, tap=tap)
            (slope,) = torch.autograd.grad(potential.sum(), at, create_graph=further)
        return slope


def _load_inner_only(net: EnergyNet, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Puts the weights of an inner network alone in their place."""
    names = [name for name in state if name.startswith(prefix)]
    if {name.removeprefix(prefix) for name in names} == set(net.inner.state_dict()):
        for name in names:
            state[f"{prefix}inner.{name.removeprefix(prefix)}"] = state.pop(name)
