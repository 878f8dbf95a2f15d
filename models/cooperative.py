"""Cooperative: an energy and the initialiser that helps it to sample, in one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import members
from gen.diffusion.tap import Tap
from gen.models.dit import DiT
from gen.models.energy import Energy
from gen.models.layers import family
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["Cooperative", "CooperativeNet"]


@dataclass(frozen=True)
class Cooperative(WrapperSpec):
    """Two networks of one kind, for cooperative diffusion recovery likelihood (Zhu et al. 2024).

    Without a target time, the network is the energy of `inner` (see gen.models.energy): its output is the score at t.
    With the next time s, it is the initialiser, an `inner` of its own: its output is the start at s. Presets: DiT's,
    and "digits", two small DiTs.

    Attributes:
        initialiser_lr: factor on the run's learning rate for the initialiser; > 0.
    """

    presets: ClassVar[family.Presets] = {
        **WrapperSpec.presets,
        "digits": {"inner": DiT.preset("digits", width=44)},
    }

    initialiser_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, initialiser_lr="(0, inf)")
        if isinstance(self.inner, Energy):
            raise UserError(f"Cooperative: inner = {type(self.inner).__name__}; give a plain denoiser")

    def build(self) -> CooperativeNet:
        """Return a fresh network."""
        return CooperativeNet(self)


class CooperativeNet(Wrapper):
    """net(x, t, cond) is the energy's field, net(x, t, cond, s=s) the initialiser's output.

    The weights of one inner network alone load into both.
    """

    prefixes = ("initialiser.", "energy.inner.")

    def __init__(self, spec: Cooperative):
        super().__init__(spec)
        self.energy = Energy(spec.inner).build()
        self.initialiser = spec.inner.build()

    @property
    def inner(self) -> nn.Module:
        """The initialiser, as the one network of the inner spec that answers for both."""
        return self.initialiser

    def potential(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the scalar whose gradient is the energy's field, [B]."""
        return self.energy.potential(x, t, cond)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if s is not None and s.shape != t.shape:
            raise UserError(f"s has shape {list(s.shape)}; it must be that of t, {list(t.shape)}")
        net = self.energy if s is None else self.initialiser
        return net(x, t, cond, tap=tap)

    def lr_scales(self) -> dict[str, float]:
        """Return the factors on the learning rate: the inner network's own, and the initialiser's slower."""
        inner = members(self.initialiser).lr_scales()
        names = [name for name, _ in self.initialiser.named_parameters()]
        slow = {f"initialiser.{name}": self.spec.initialiser_lr * inner.get(name, 1.0) for name in names}
        return slow | {f"energy.inner.{name}": scale for name, scale in inner.items()}
