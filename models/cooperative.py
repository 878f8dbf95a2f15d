"""Cooperative: an energy and the initialiser that helps it to sample, in one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.tap import Tap
from gen.models.dit import DiT
from gen.models.energy import Energy

__all__ = ["Cooperative", "CooperativeNet"]

SMALL = DiT.preset("digits", width=44)


@dataclass(frozen=True)
class Cooperative:
    """Two networks of one kind, for cooperative diffusion recovery likelihood (Zhu et al. 2024).

    Asked without a target time, it answers as the energy of `inner` (see gen.models.energy): the score at t. Told that
    the next time is s, it answers as the initialiser, an `inner` of its own: what to begin with at s.
    initialiser_lr: the initialiser's learning rate, as a multiple of the run's.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"digits": {"inner": SMALL}}

    inner: Any = part("models", default=DiT())
    initialiser_lr: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", build("models", self.inner))
        if isinstance(self.inner, (Energy, Cooperative)) or not self.initialiser_lr > 0:
            raise UserError(
                f"Cooperative: inner = {type(self.inner).__name__}, initialiser_lr = {self.initialiser_lr}; give a "
                "plain denoiser and a positive rate"
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
    def preset(name: str, **changes: Any) -> Cooperative:
        """ "digits", two small DiTs, or two of DiT's preset of another name; other changes are the DiTs'."""
        own = {f.name: changes.pop(f.name) for f in fields(Cooperative) if f.name in changes}
        inner = replace(SMALL, **changes) if name == "digits" else DiT.preset(name, **changes)
        return replace(Cooperative(inner), **own)

    def build(self) -> CooperativeNet:
        """The network, freshly initialised."""
        return CooperativeNet(self)


class CooperativeNet(nn.Module):
    """net(x, t, cond) is the energy's field, net(x, t, cond, s=s) the initialiser's output; sites are `inner`'s.

    load_state_dict also takes the weights of one inner network alone: both begin there.
    """

    def __init__(self, spec: Cooperative):
        super().__init__()
        self.spec = spec
        self.energy = Energy(spec.inner).build()
        self.initialiser = spec.inner.build()
        self.register_load_state_dict_pre_hook(_load_inner_only)  # type: ignore[no-untyped-call]

    def potential(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The scalar whose gradient is the energy's field, [B]."""
        return self.energy.potential(x, t, cond)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        if s is not None and s.shape != t.shape:
            raise UserError(f"s has shape {list(s.shape)}; it must be that of t, {list(t.shape)}")
        net = self.energy if s is None else self.initialiser
        return net(x, t, cond, tap=tap)

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inner network's condition that stands for "no condition"."""
        return self.initialiser.null(cond)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one sample's state."""
        return self.energy.state_shape

    def image(self, x: Tensor) -> Tensor:
        """The image in a state x [B, ...]."""
        return self.energy.image(x)

    def lr_scales(self) -> dict[str, float]:
        """The learning rates, relative to the run's: the inner network's own, and the initialiser's slower."""
        inner: dict[str, float] = getattr(self.initialiser, "lr_scales", dict)()
        names = [name for name, _ in self.initialiser.named_parameters()]
        slow = {f"initialiser.{name}": self.spec.initialiser_lr * inner.get(name, 1.0) for name in names}
        return slow | {f"energy.inner.{name}": scale for name, scale in inner.items()}


def _load_inner_only(net: CooperativeNet, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Puts the weights of one inner network in both places."""
    names = [name for name in state if name.startswith(prefix)]
    if {name.removeprefix(prefix) for name in names} == set(net.initialiser.state_dict()):
        for name in names:
            weight, bare = state.pop(name), name.removeprefix(prefix)
            state[f"{prefix}initialiser.{bare}"] = state[f"{prefix}energy.inner.{bare}"] = weight
