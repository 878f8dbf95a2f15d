"""From uint8 pictures to a network's input: checks, batches of one size, and the resize rules of the field's tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gen.config.errors import UserError

__all__ = [
    "Resample",
    "centre_square",
    "in_batches",
    "normalised",
    "resized",
    "resized_by_pil",
    "resized_like_tf1",
    "to_colour",
]

Resample = Literal["bilinear", "bicubic"]


def to_colour(images: Tensor, name: str) -> Tensor:
    """Return pictures with three channels, grey ones repeated; UserError for others, alpha among them.

    Args:
        images: uint8 [B, 1 or 3, H, W].
        name: of the extractor, for errors.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        alpha = (
            " (alpha is no colour: put the pictures on a background first)" if images.shape[1:2] in ((2,), (4,)) else ""
        )
        raise UserError(f"{name} takes uint8 images [B, 1 or 3, H, W], this is {given}{alpha}")
    return images.expand(-1, 3, -1, -1)


def in_batches(images: Tensor, batch: int, compute: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Compute rows in calls of one size, the last one filled up, so that no caller's batch size changes a bit.

    Args:
        images: uint8 [B, C, H, W], at least one.
        batch: images per call.
        compute: uint8 [batch, C, H, W] to named rows [batch, ...].

    Returns:
        Rows [B, ...] by name, float32 on the CPU.
    """
    if not len(images):
        raise UserError("an extractor was given no images")
    parts: list[Mapping[str, Tensor]] = []
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # features of one name have one precision
    try:
        for part in images.split(batch):
            full = F.pad(part, (0, 0) * (part.ndim - 1) + (0, batch - len(part)))
            cudnn: Any = torch.backends.cudnn  # "flags" sets what it is not given too
            exact = cudnn.flags(enabled=True, deterministic=True, allow_tf32=False, fp32_precision=None)
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False), exact:
                rows = compute(full)
            parts.append({name: value[: len(part)].float().cpu() for name, value in rows.items()})
    finally:
        torch.set_float32_matmul_precision(precision)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def centre_square(images: Tensor) -> Tensor:
    """Return the square of the shorter side in the middle of pictures; an odd pixel more is left after it.

    Args:
        images: [B, C, H, W].
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (x - mean) / std by channel.

    Args:
        x: [B, 3, H, W].
        mean, std: of the three channels.
    """
    shape = (1, len(mean), 1, 1)
    return (x - x.new_tensor(mean).reshape(shape)) / x.new_tensor(std).reshape(shape)


def resized(images: Tensor, size: int, mode: Resample, antialias: bool) -> Tensor:
    """Resize by torch's rule, pixel centres at half-integers.

    Args:
        images: uint8 or float [B, C, H, W].
        size: of both sides.
        mode: "bilinear" or "bicubic".
        antialias: whether a shrinking filter is widened.

    Returns:
        float32 [B, C, size, size], not rounded; bicubic values may leave the range.
    """
    return F.interpolate(images.float(), (size, size), mode=mode, align_corners=False, antialias=antialias)


def resized_like_tf1(images: Tensor, size: int) -> Tensor:
    """Resize bilinearly by the rule of TensorFlow 1: source = destination * (in / out), no half pixel, no antialias.

    Args:
        images: uint8 or float [B, C, H, W].
        size: of both sides.

    Returns:
        float32 [B, C, size, size], not rounded.
    """
    x = images.float()
    low, high, share = _tf1_taps(x.shape[3], size, x.device)
    left, right = x[..., low], x[..., high]
    x = left + (right - left) * share  # [B, C, H, size]
    low, high, share = _tf1_taps(x.shape[2], size, x.device)
    top, bottom = x[:, :, low], x[:, :, high]
    return top + (bottom - top) * share[:, None]


def _tf1_taps(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return lower and upper source indices, and the upper one's share, of each of `size` positions."""
    scale = torch.tensor(length, dtype=torch.float32) / size  # a float32 number, as there
    source = torch.arange(size, dtype=torch.float32) * scale
    low = source.floor().long()
    high = (low + 1).clamp(max=length - 1)
    return low.to(device), high.to(device), (source - low).to(device)


def resized_by_pil(images: Tensor, size: tuple[int, int], mode: Resample = "bicubic", rounded: bool = True) -> Tensor:
    """Resize by PIL, whose filters widen when they shrink.

    Args:
        images: uint8 [B, 3, H, W].
        size: (H, W) of the result.
        mode: "bilinear" or "bicubic".
        rounded: True for pictures of bytes, as torchvision and dgm-eval resize them; False for one float picture a
            channel, clipped to 0..255, as clean-fid does.

    Returns:
        float32 [B, 3, H, W] in 0..255, on the device of the images.
    """
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    goal, filter_ = (size[1], size[0]), filters[mode]
    out = np.empty((len(images), 3, *size), np.float32)
    for i, image in enumerate(images.cpu().numpy()):
        if rounded:
            out[i] = np.asarray(Image.fromarray(image.transpose(1, 2, 0).copy()).resize(goal, filter_)).transpose(
                2, 0, 1
            )
        else:
            for channel, plane in enumerate(image.astype(np.float32)):
                out[i, channel] = np.asarray(Image.fromarray(plane).resize(goal, filter_)).clip(0, 255)
    return torch.from_numpy(out).to(images.device)
