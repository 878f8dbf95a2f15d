"""Networks that wrap another network, and their specs: both forward what they do not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import NetSpec, members, sides
from gen.models.dit import DiT
from gen.models.layers import family

__all__ = ["Wrapper", "WrapperSpec"]


@dataclass(frozen=True)
class WrapperSpec(family.Family):
    """Base of the specs of networks that wrap another; presets are DiT's by name.

    Attributes:
        inner: spec of the wrapped network, of another class than the wrapper's own.
    """

    presets: ClassVar[family.Presets] = {name: {"inner": DiT.preset(name)} for name in DiT.presets}

    inner: Any = part("models", kinds=(NetSpec,), default=DiT())

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.inner, type(self)):
            name = type(self).__name__
            raise UserError(f"{name}.inner is of {name} already; give the network that it wraps")

    @property
    def size(self) -> int | tuple[int, int]:
        """Height and width of the inner network's x, pixels: one number for squares."""
        height, width = sides(self.inner)
        return height if height == width else (height, width)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, as of the inner network."""
        return getattr(self.inner, "size_step", None)

    @property
    def channels(self) -> int:
        """Channels of the inner network's x."""
        return int(self.inner.channels)

    @property
    def null_class(self) -> bool:
        """Whether the inner model has a label for "no class"."""
        return bool(getattr(self.inner, "null_class", True))

    @property
    def classes(self) -> int:
        """Number of labels of the inner network."""
        return int(self.inner.classes)

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """Return the spec of a preset; changes that are no fields of the wrapper are the inner network's."""
        own = {f.name: changes.pop(f.name) for f in fields(cls) if f.name in changes}
        spec = super().preset(name, **own)
        return replace(spec, inner=replace(spec.inner, **changes))


class Wrapper(nn.Module):
    """Base of networks that wrap another, `inner`; keeps the contract gen.diffusion.net.Net if that does.

    Sites of a tap are the inner network's. load_state_dict also takes the weights of an inner network alone; weights
    of the wrapper's own then stay as they are.

    Attributes:
        prefixes: where the inner network's weights lie in the state dict.
    """

    prefixes: ClassVar[tuple[str, ...]] = ("inner.",)
    inner: Any

    def __init__(self, spec: Any):
        super().__init__()
        self.spec = spec
        self.register_load_state_dict_pre_hook(load_inner_only)  # type: ignore[no-untyped-call]

    def null(self, cond: Cond) -> Cond:
        """Return the inner network's condition that stands for "no condition"."""
        return self.inner.null(cond)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return members(self.inner).state_shape or ()

    @property
    def compute_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes besides float32 that the inner network computes in."""
        return members(self.inner).compute_dtypes

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that the inner network reads."""
        return members(self.inner).conditions

    @property
    def store_null_text(self) -> Callable[[Tensor, Tensor, Tensor | None], None] | None:
        """The inner network's method, or None."""
        return members(self.inner).store_null_text

    def taps_kept(self) -> AbstractContextManager[None]:
        """Return a context in which what taps need stays on the inner network."""
        return members(self.inner).taps_kept()

    @property
    def base_picture(self) -> Callable[[Cond, tuple[int, int]], Tensor] | None:
        """What makes the picture that states are residuals of, the inner network's; None for none."""
        return members(self.inner).base_picture

    def image(self, x: Tensor) -> Tensor:
        """Return the image in a state x [B, ...]."""
        return members(self.inner).image(x)

    def lr_scales(self) -> dict[str, float]:
        """Return the inner network's factors on the learning rate, of the parameters that are there."""
        there = {name for name, _ in self.inner.named_parameters()}
        scales = members(self.inner).lr_scales()
        return {f"inner.{name}": scale for name, scale in scales.items() if name in there}

    def inner_weights(self, given: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Return the inner network's part of given weights; None if they are not those of an inner network alone."""
        if set(given) == set(self.inner.state_dict()):
            return given
        return self.inner.inner_weights(given) if isinstance(self.inner, Wrapper) else None


def load_inner_only(net: Wrapper, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename, in a state dict to be loaded, the weights of an inner network alone; see torch's pre-hooks of loading."""
    given = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    weights = net.inner_weights(given)
    if weights is None:
        return
    own = {name: weight for name, weight in net.state_dict().items() if not name.startswith(net.prefixes)}
    for name in given:
        del state[f"{prefix}{name}"]
    for name, weight in weights.items():
        state |= {f"{prefix}{place}{name}": weight for place in net.prefixes}
    state |= {f"{prefix}{name}": weight for name, weight in own.items()}
