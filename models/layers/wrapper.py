"""A network around another: what it says of its samples is what the inner one says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Wrapper", "state_shape"]


class Wrapper(nn.Module):
    """A module whose `inner` is the network of a family (gen.models), called like it."""

    inner: Any

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inner network's condition that stands for "no condition"."""
        return self.inner.null(cond)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one sample's state: the image, unless the inner network says otherwise."""
        return state_shape(self.inner)

    def image(self, x: Tensor) -> Tensor:
        """The image in a state x [B, ...]."""
        return self.inner.image(x) if hasattr(self.inner, "image") else x

    def lr_scales(self) -> dict[str, float]:
        """The inner network's learning rates, relative to the run's."""
        return {f"inner.{name}": scale for name, scale in getattr(self.inner, "lr_scales", dict)().items()}


def state_shape(net: Any) -> tuple[int, ...]:
    """The shape of one sample's state: the network's own, or else its spec's image."""
    spec = net.spec
    return tuple(getattr(net, "state_shape", (spec.channels, spec.size, spec.size)))
