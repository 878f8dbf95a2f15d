"""A differentiable rasteriser of curves: filled and stroked Bezier paths as pictures, and as .svg.

A picture is the unit square, x to the right and y down, as in .svg; pixel (i, j) of [H, W] is sampled at its centre
((j + 1/2) / W, (i + 1/2) / H). The edge of a shape is soft: coverage is sigmoid(d / softness) of the signed distance d
to it, positive inside. So a disc of radius r has the area pi r^2 + pi^3 softness^2 / 3, and the derivative 2 pi r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["bezier", "distance", "fill", "paint", "stroke", "to_svg", "winding"]


def bezier(points: Tensor, samples: int = 8) -> Tensor:
    """Return points on a path of cubic Bezier segments, [..., K samples + 1, 2].

    Args:
        points: control points [..., 3 K + 1, 2]; segment k has numbers 3 k to 3 k + 3. A closed path ends where it
            begins.
        samples: of each segment.
    """
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[-2] % 3 != 1 or points.shape[-2] < 4:
        raise UserError(f"bezier: points are {list(points.shape)}; they must be [..., 3 K + 1, 2] of K >= 1 segments")
    u = torch.arange(samples, dtype=points.dtype, device=points.device) / samples
    weights = torch.stack([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3], -1)  # [samples, 4]
    segments = points.unfold(-2, 4, 3)  # [..., K, 2, 4]
    curve = torch.einsum("...kdc,sc->...ksd", segments, weights).flatten(-3, -2)  # [..., K samples, 2]
    return torch.cat([curve, points[..., -1:, :]], -2)


def distance(line: Tensor, height: int, width: int) -> Tensor:
    """Return the distance of every pixel to a polygonal line, [..., height, width].

    Args:
        line: its corners [..., M, 2], M >= 2.
        height, width: of the picture, pixels.
    """
    start, along = line[..., None, :-1, :], line.diff(dim=-2)[..., None, :, :]  # [..., 1, M - 1, 2]
    to = _pixels(height, width, line)[:, None] - start  # [..., H W, M - 1, 2]
    length = along.square().sum(-1).clamp(min=torch.finfo(line.dtype).tiny)
    share = ((to * along).sum(-1) / length).clamp(0, 1)
    square = (to - share[..., None] * along).square().sum(-1).amin(-1)  # [..., H W]
    return (square + torch.finfo(line.dtype).eps ** 2).sqrt().unflatten(-1, (height, width))


def winding(line: Tensor, height: int, width: int) -> Tensor:
    """Return how often a closed polygonal line goes around every pixel, [..., height, width]; without gradient.

    Args:
        line: its corners [..., M, 2], the last as the first.
        height, width: of the picture, pixels.
    """
    to = line.detach()[..., None, :, :] - _pixels(height, width, line)[:, None]  # [..., H W, M, 2]
    (x0, y0), (x1, y1) = to[..., :-1, :].unbind(-1), to[..., 1:, :].unbind(-1)
    angle = torch.atan2(x0 * y1 - y0 * x1, x0 * x1 + y0 * y1).sum(-1)  # of successive corners
    return (angle / (2 * math.pi)).round().unflatten(-1, (height, width))


def fill(line: Tensor, height: int, width: int, softness: float) -> Tensor:
    """Return the coverage of the inside of a closed line, in [0, 1], [..., height, width].

    Args:
        line: its corners [..., M, 2], the last as the first; inside is where it goes around (the rule "nonzero").
        height, width: of the picture, pixels.
        softness: of the edge, in sides of the picture.
    """
    inside = torch.where(winding(line, height, width) != 0, 1.0, -1.0).to(line)
    return torch.sigmoid(inside * distance(line, height, width) / softness)


def stroke(line: Tensor, thickness: Tensor, height: int, width: int, softness: float) -> Tensor:
    """Return the coverage of a line drawn by a round pen, in [0, 1], [..., height, width].

    Args:
        line: its corners [..., M, 2].
        thickness: of the pen, [...], in sides of the picture.
        height, width: of the picture, pixels.
        softness: of the edge, in sides of the picture.
    """
    return torch.sigmoid((thickness[..., None, None] / 2 - distance(line, height, width)) / softness)


def paint(coverage: Tensor, colours: Tensor, background: Tensor) -> Tensor:
    """Return a picture of shapes painted one over another, [..., C, H, W].

    Args:
        coverage: of each shape, [..., P, H, W]; the first is painted first.
        colours: of each shape, [..., P, C].
        background: [C].
    """
    picture = background[:, None, None]
    for cover, colour in zip(coverage.unbind(-3), colours.unbind(-2), strict=True):
        picture = picture + cover[..., None, :, :] * (colour[..., None, None] - picture)
    return picture


def to_svg(
    points: Tensor, colours: Tensor, background: Tensor, thickness: Tensor | None = None, size: int = 256
) -> str:
    """Return a drawing as the text of an .svg file: paths of cubic Bezier curves, filled or stroked by a round pen.

    Args:
        points: control points of each path, [P, 3 K + 1, 2].
        colours: [P, C] in [-1, 1], C of 1 (grey) or 3.
        background: [C].
        thickness: of the pen, [P], in sides of the picture; None for filled paths.
        size: width and height that the file states, pixels.
    """
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 1 1">']
    lines.append(f'<rect width="1" height="1" fill="{_hex(background.tolist())}"/>')
    for i, (path, colour) in enumerate(zip(points.tolist(), colours.tolist(), strict=True)):
        (x, y), *rest = path
        curve = " ".join(f"{x:.6g},{y:.6g}" for x, y in rest)
        how = f'fill="{_hex(colour)}"'
        if thickness is not None:
            how = f'fill="none" stroke="{_hex(colour)}" stroke-width="{float(thickness[i]):.6g}" stroke-linecap="round"'
        lines.append(f'<path d="M {x:.6g},{y:.6g} C {curve}" {how}/>')
    return "\n".join([*lines, "</svg>", ""])


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Return the centres of all pixels, row by row, [H W, 2]."""
    y, x = ((torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in (height, width))
    return torch.cartesian_prod(y, x).flip(-1)


def _hex(colour: Sequence[float]) -> str:
    levels = [round((min(max(value, -1.0), 1.0) + 1) * 127.5) for value in colour]
    return "#" + "".join(f"{level:02x}" for level in (levels * 3)[:3])
