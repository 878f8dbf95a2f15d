"""Beside: any denoiser as one of residuals, which sees the picture that it restores beside x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import NetSpec
from gen.diffusion.tap import Tap
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["Beside", "BesideNet"]


@dataclass(frozen=True)
class Beside(WrapperSpec):
    """The inner network with twice its channels, for x = picture - base beside the base of cond["low"].

    The base is the degraded picture, enlarged by a bicubic interpolation where it is smaller, as in ResShift (Yue et
    al. 2023), or what a coarse network makes of that, as in DocDiff (Yang et al. 2023). Samples are residual + base.
    Presets: DiT's. `inner.channels` are those of a picture.

    Attributes:
        coarse: spec of a network of pictures whose output, at t = 0, is added to the enlarged picture; None for none.
    """

    coarse: Any = part("models", kinds=(NetSpec,), default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if self.coarse is not None and (self.coarse.channels, self.coarse.size) != (self.channels, self.size):
            raise UserError(
                f"Beside: coarse is of {self.coarse.channels} channels and size {self.coarse.size}; it must be as "
                f"inner, {self.channels} and {self.size}"
            )

    def build(self) -> BesideNet:
        """Return a fresh network."""
        return BesideNet(self)


class BesideNet(Wrapper):
    """net(x [B, C, H, W] of residuals, t, {"low": [B, C, h, w]}) -> [B, C, H, W].

    A "base" in cond, which `enlarged` returned before, is taken instead of one that is computed anew at every call.
    """

    def __init__(self, spec: Beside):
        super().__init__(spec)
        self.inner = replace(spec.inner, channels=2 * spec.channels).build()
        self.coarse = None if spec.coarse is None else spec.coarse.build()

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one residual."""
        _, *sides = super().state_shape
        return (self.spec.channels, *sides)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that are read."""
        return ("low", *super().conditions)

    @property
    def base_picture(self) -> Callable[[Cond, tuple[int, int]], Tensor]:
        """The method `enlarged`."""
        return self.enlarged

    def enlarged(self, cond: Cond, size: tuple[int, int]) -> Tensor:
        """Return what states are residuals of, [B, C, H, W].

        Args:
            cond: must have "low" [B, C, h, w], floating.
            size: (H, W).
        """
        low = cond.get("low")
        channels = self.spec.channels
        if low is None or low.ndim != 4 or low.shape[1] != channels or not low.is_floating_point():
            given = f"given: {', '.join(cond) or 'nothing'}" if low is None else f"it is {low.dtype} {list(low.shape)}"
            raise UserError(f"a model that restores needs cond['low'], floats [B, {channels}, h, w]; {given}")
        if tuple(low.shape[2:]) != tuple(size):
            low = interpolate(low, size, mode="bicubic", align_corners=False)
        if self.coarse is None:
            return low
        start = torch.zeros(len(low), dtype=torch.promote_types(low.dtype, torch.float32), device=low.device)
        refined: Tensor = self.coarse(low.to(next(self.coarse.parameters()).dtype), start, cond)
        return low + refined.to(low.dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        base = cond["base"] if "base" in cond else self.enlarged(cond, (x.shape[2], x.shape[3]))
        out: Tensor = self.inner(torch.cat([x, base.to(x.dtype)], 1), t, cond, s=s, tap=tap)
        return out[:, : self.spec.channels]

    def inner_weights(self, given: Any) -> None:
        """Return None: weights of a network of pictures are not those of one of residuals with a base."""
        return
