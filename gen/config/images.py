"""Pictures from tensors: the one rule for rounding, contact sheets, and plots of signals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))

__all__ = ["contact_sheet", "from_pil", "plot_signals", "to_pil", "to_uint8"]


def to_uint8(x: Tensor) -> Tensor:
    """Convert samples in [-1, 1] to uint8, clamped and rounded half to even; truncation would darken by half a level.

    Args:
        x: samples, any shape.

    Raises:
        NonFinite: for NaN and infinity.
    """
    if not bool(torch.isfinite(x).all()):
        raise NonFinite(
            f"{int((~torch.isfinite(x)).sum())} of {x.numel()} values are not finite: refusing to draw them"
        )
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image:
    """Convert one image to a PIL picture.

    Args:
        image: uint8 [C, H, W], C = 1 or 3.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"a picture has 1 or 3 channels, this tensor's shape is {list(image.shape)}")
    array = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_pil(picture: object, channels: int) -> Tensor:
    """Convert a PIL picture to a sample, float32 [C, H, W] in [-1, 1].

    Args:
        picture: the picture.
        channels: 1 for grey or 3 for colours.

    Raises:
        UserError: for what is no picture, and for other numbers of channels.
    """
    from PIL import Image

    if not isinstance(picture, Image.Image) or channels not in (1, 3):
        raise UserError(f"{type(picture).__name__}: a picture or a tensor of {channels} channels is needed")
    picture = picture.convert("L" if channels == 1 else "RGB")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(picture.height, picture.width, channels).permute(2, 0, 1).float() / 127.5 - 1


def contact_sheet(images: Tensor, columns: int, zoom: int = 1, gap: int = 1) -> Image:
    """Draw images side by side as one picture.

    Args:
        images: uint8 [N, C, H, W].
        columns: images in a row, at most.
        zoom: width and height of one of their pixels.
        gap: white pixels between images.
    """
    n, c, h, w = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    big = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    sheet = torch.full((c, rows * (h * zoom + gap) - gap, columns * (w * zoom + gap) - gap), 255, dtype=torch.uint8)
    for i, image in enumerate(big):
        top, left = i // columns * (h * zoom + gap), i % columns * (w * zoom + gap)
        sheet[:, top : top + h * zoom, left : left + w * zoom] = image
    return to_pil(sheet)


def plot_signals(x: Tensor, height: int = 64, width: int = 128) -> Tensor:
    """Draw each signal as a plot, a curve for each channel, on one scale for all.

    Args:
        x: signals [N, C, L]; the scale reaches from -1 to 1, or as far as they do.
        height, width: of a plot, pixels.

    Returns:
        uint8 [N, 3, height, width].

    Raises:
        NonFinite: for NaN and infinity.
    """
    from PIL import Image, ImageDraw

    to_uint8(x)  # refuses what is not finite
    reach = max(1.0, float(x.abs().max()))
    down = ((1 - x.double() / reach) / 2 * (height - 3) + 1).tolist()  # pixels from the top, of each value
    plots = []
    for channels in down:
        plot = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(plot)
        draw.line([(0, height // 2), (width, height // 2)], (220, 220, 220))
        for k, values in enumerate(channels):
            step = (width - 1) / max(1, len(values) - 1)
            points = [(i * step, value) for i, value in enumerate(values)]
            draw.line(points if len(points) > 1 else [points[0], (width, values[0])], COLOURS[k % len(COLOURS)])
        plots.append(torch.frombuffer(bytearray(plot.tobytes()), dtype=torch.uint8).reshape(height, width, 3))
    return torch.stack(plots).permute(0, 3, 1, 2).contiguous()
