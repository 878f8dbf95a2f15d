"""Random masks of holes in pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["lama_mask"]

SIDE = 256  # of the pictures that LaMa's sizes are of, pixels
STROKES, LINES, ANGLES, LENGTH, WIDTH = (1, 5), 5, 4, (10, 209), (5, 104)
BOXES, BOX, MARGIN = (1, 4), (30, 150), 10
BORDER, PROBABILITY = (0.04, 0.25), 0.5


def lama_mask(height: int, width: int, seed: int) -> Tensor:
    """Return the pixels of a random hole, bool [H, W]: LaMa's masks of medium size (Suvorov et al. 2022).

    One of three with equal probability: strokes of a wide brush, boxes, or borders to be painted on. Lengths are of
    pictures of 256 pixels, and shrink with the smaller side.

    Args:
        height, width: of the picture.
        seed: of the hole.
    """
    draw = torch.Generator().manual_seed(seed)
    paint = (_strokes, _boxes, _borders)[_integer(draw, 0, 2)]
    return paint(height, width, min(height, width) / SIDE, draw)


def _strokes(height: int, width: int, unit: float, draw: torch.Generator) -> Tensor:
    hole = torch.zeros(height, width, dtype=torch.bool)
    at = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).double()
    for i in range(_integer(draw, *STROKES)):
        end = torch.tensor([_integer(draw, 0, height - 1), _integer(draw, 0, width - 1)]).double()
        for _ in range(_integer(draw, 1, LINES)):
            angle = 0.01 + _integer(draw, 0, ANGLES - 1)
            angle = 2 * math.pi - angle if i % 2 == 0 else angle
            length, brush = unit * _integer(draw, *LENGTH), unit * _integer(draw, *WIDTH)
            begin, step = end, length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            end = (begin + step).clamp(torch.zeros(2), torch.tensor([height, width]))
            hole |= _distance(at, begin, end) <= max(brush, 1) / 2
    return hole


def _distance(at: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return the distances of points [..., 2] to a segment."""
    along = end - begin
    share = ((at - begin) @ along / (along @ along).clamp(min=1e-12)).clamp(0, 1)
    return (at - begin - share[..., None] * along).norm(dim=-1)


def _boxes(height: int, width: int, unit: float, draw: torch.Generator) -> Tensor:
    hole = torch.zeros(height, width, dtype=torch.bool)
    margin = round(unit * MARGIN)
    for _ in range(_integer(draw, *BOXES)):
        high, wide = (max(round(unit * _integer(draw, *BOX)), 1) for _ in range(2))
        top = _integer(draw, margin, height - margin - high)
        left = _integer(draw, margin, width - margin - wide)
        hole[top : top + high, left : left + wide] = True
    return hole


def _borders(height: int, width: int, unit: float, draw: torch.Generator) -> Tensor:
    """Return a hole along some of the four edges, at least one."""
    chosen = torch.rand(4, generator=draw) < PROBABILITY
    chosen[_integer(draw, 0, 3)] |= not bool(chosen.any())
    shares = BORDER[0] + (BORDER[1] - BORDER[0]) * torch.rand(4, generator=draw)
    top, bottom, left, right = (
        max(round(size * share), 1) if on else 0
        for size, share, on in zip((height, height, width, width), shares.tolist(), chosen.tolist(), strict=True)
    )
    hole = torch.ones(height, width, dtype=torch.bool)
    hole[top : height - bottom, left : width - right] = False
    return hole


def _integer(draw: torch.Generator, low: int, high: int) -> int:
    """Return a random whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=draw))
