"""Editing of given images by a sampling loop: image to image, and inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.images import from_pil
from gen.diffusion.path import NoisePath

__all__ = ["Edit", "batched", "new_state"]

STRENGTH = 0.8  # of image to image, diffusers' default


@dataclass(frozen=True, eq=False)
class Edit:
    """Images to begin from, and which part of them is kept.

    The loop begins with the noised image at the grid's step N - floor(N strength), as in diffusers (SDEdit, Meng et al.
    2021). Where the mask is 0, every step's end is the image at that step's noise level (RePaint, Lugmayr et al. 2022,
    without its resampling), and the last one the image itself.

    Attributes:
        image: [n, C, H, W] in the units of the samples.
        mask: [n, 1 or C, H, W], 1 where it is painted anew, 0 where the image is kept; None for everywhere.
        strength: share of the grid's steps that is done, in (0, 1].
    """

    image: Tensor
    mask: Tensor | None
    strength: float

    @classmethod
    def of(cls, image: Any, mask: Any, strength: float | None, n: int, shape: Sequence[int]) -> Edit | None:
        """Return the edit of n samples of a shape; None without an image.

        Args:
            image: tensor [C, H, W] or [n, C, H, W] in [-1, 1], a PIL picture, or a list of n.
            mask: tensor [H, W], [C or 1, H, W] or [n, C or 1, H, W] in [0, 1].
            strength: in (0, 1]; None for 0.8, or 1 with a mask.
            n: number of samples.
            shape: of one sample.

        Raises:
            UserError: for other shapes and values, and for a mask or a strength without an image.
        """
        if image is None:
            if mask is None and strength is None:
                return None
            raise UserError(f"sample: {'mask' if mask is not None else 'strength'} is given without an image")
        strength = (STRENGTH if mask is None else 1.0) if strength is None else strength
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise UserError(f"sample: strength = {strength!r}; it must be in (0, 1]")
        if len(shape) == 1 and (not isinstance(image, Tensor) or image.ndim > 2):
            raise UserError(f"sample: image: x of this model are {shape[0]} numbers, no picture; it begins with noise")
        if mask is not None:
            if isinstance(mask, Tensor):
                mask = (mask[None] if mask.ndim == len(shape) - 1 else mask).float()
            mask = batched("mask", mask, n, shape, channels=(1, shape[0]))
            if not bool(((mask >= 0) & (mask <= 1)).all()):
                raise UserError("sample: mask has values outside [0, 1]; 1 is painted anew, 0 is kept")
        if not isinstance(image, Tensor):
            pictures = image if isinstance(image, (list, tuple)) and image else [image]
            image = torch.stack([from_pil(picture, shape[0]) for picture in pictures])
        return cls(batched("image", image, n, shape, channels=(shape[0],)), mask, float(strength))

    def rows(self, rows: slice, like: Tensor) -> Edit:
        """Return the edit of some samples, in the dtype and on the device of a tensor."""
        mask = None if self.mask is None else self.mask[rows].to(like)
        return replace(self, image=self.image[rows].to(like), mask=mask)

    def times(self, times: Tensor) -> Tensor:
        """Return the times that are left of a grid [N + 1]; UserError if the strength leaves none."""
        steps = len(times) - 1
        left = min(int(steps * self.strength), steps)
        if not left:
            raise UserError(f"sample: strength = {self.strength:g} of {steps} steps leaves none: take more of either")
        return times[steps - left :]

    def blend(self, path: NoisePath, x: Tensor, unit: Tensor, t: Tensor) -> Tensor:
        """Return x at t with the image, noised by unit noise, where the mask keeps it."""
        return x if self.mask is None else torch.lerp(path.mix(self.image, unit, t).to(x), x, self.mask.to(x))


def new_state(given: object, x: Tensor) -> Tensor:
    """Return what a callback gives in place of a state, in its dtype and on its device.

    Args:
        given: what it returned.
        x: the state.

    Raises:
        UserError: for what is no tensor of its shape.
    """
    if not isinstance(given, Tensor) or given.shape != x.shape:
        got = list(given.shape) if isinstance(given, Tensor) else shown(given)
        raise UserError(f"sample: callback returned {got}; allowed: None, or a tensor {list(x.shape)}, the new x")
    return given.to(x)


def batched(name: str, value: Any, n: int, shape: Sequence[int], channels: Sequence[int]) -> Tensor:
    """Return a tensor [n, C, H, W] from one, or from one [C, H, W] for all samples.

    Args:
        name: for the error.
        value: the tensor.
        n: number of samples.
        shape: (C, H, W) of a sample.
        channels: allowed values of C.

    Raises:
        UserError: for another shape or kind, and for NaN.
    """
    allowed = " or ".join(f"[{n}, {', '.join(map(str, (c, *shape[1:])))}]" for c in dict.fromkeys(channels))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"sample: {name} is {kind}; allowed: a float tensor {allowed}")
    if not bool(value.isfinite().all()):
        raise UserError(f"sample: {name} has NaN or inf")
    rows = value[None] if value.ndim == len(shape) else value
    if rows.shape not in [(m, c, *shape[1:]) for m in (1, n) for c in channels]:
        raise UserError(f"sample: {name} has shape {list(value.shape)}; allowed: {allowed}, or one for all")
    return rows.expand(n, *rows.shape[1:])
