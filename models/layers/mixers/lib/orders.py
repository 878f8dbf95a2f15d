"""Orders in which the tokens of a picture are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

__all__ = ["Reordered", "Sorted", "hilbert", "scan_order"]


def scan_order(order: str, grid: tuple[int, int], block: int) -> tuple[Tensor | None, tuple[int, int]]:
    """Return the tokens as a block reads them, int64 [T] or None for as they lie, and the grid that they then form.

    Args:
        order: "rows"; "alternate", column by column in every second block; "zigzag", as that, but every second line
            backwards, so that neighbours follow each other, and from another corner in every second pair of blocks
            (ZigMa, Hu et al. 2024); "hilbert", along that curve, which also keeps near what is near across lines. A
            curve is a grid of one row.
        grid: rows and columns.
        block: its number.
    """
    rows, columns = grid
    if order == "hilbert":
        return hilbert(rows, columns), (1, rows * columns)
    across = order in ("alternate", "zigzag") and block % 2 == 1
    tokens = torch.arange(rows * columns).view(rows, columns)
    tokens = tokens.mT if across else tokens
    if order == "zigzag":
        tokens = tokens.flip(1) if block // 2 % 2 else tokens
        tokens = torch.stack([line.flip(0) if i % 2 else line for i, line in enumerate(tokens)])
        return tokens.flatten(), (1, rows * columns)
    return (tokens.flatten(), (columns, rows)) if across else (None, grid)


def hilbert(rows: int, columns: int) -> Tensor:
    """Return the tokens of a grid in the order of Hilbert's curve through the smallest square of 2^n around it, [T].

    Args:
        rows, columns: of the grid.
    """
    side = 1 << (max(rows, columns) - 1).bit_length()
    cells = [_cell(i, side) for i in range(side**2)]
    return torch.tensor([y * columns + x for x, y in cells if x < columns and y < rows])


def _cell(i: int, side: int) -> tuple[int, int]:
    """Return column and row of the curve's i-th cell: of each pair of binary digits, a quarter, turned as it is."""
    x = y = 0
    size = 1
    while size < side:
        right, down = i // 2 & 1, (i ^ (i // 2)) & 1
        if not down:
            x, y = (size - 1 - y, size - 1 - x) if right else (y, x)
        x, y, i, size = x + size * right, y + size * down, i // 4, 2 * size
    return x, y


class Reordered(nn.Module):
    """A mixer that reads tokens [B, T, width] in another order, which is undone in its output.

    Args:
        mixer: of tokens.
        order: they in the order of reading, int64 [T].
    """

    order: Tensor
    back: Tensor

    def __init__(self, mixer: nn.Module, order: Tensor):
        super().__init__()
        self.mixer = mixer
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, h: Tensor, rope: None = None) -> Tensor:
        out: Tensor = self.mixer(h[:, self.order])[:, self.back]
        return out


class Sorted(nn.Module):
    """A mixer that reads the tokens [B, T, width] of each row by a learned score, from the least to the greatest.

    So its output follows its tokens however they are shuffled. The score learns as if a token were spread over the
    positions near its own, by a softmax of differences of scores, T^2 numbers (SoftSort, Prillo & Eisenschlos 2020);
    token reordering, Vo et al. 2024, has that mixture itself, and does not undo it.

    Args:
        mixer: of tokens.
        width: of the tokens.
    """

    def __init__(self, mixer: nn.Module, width: int):
        super().__init__()
        self.mixer, self.score = mixer, nn.Linear(width, 1, bias=False)

    def forward(self, h: Tensor, rope: None = None) -> Tensor:
        score = self.score(h)[..., 0]  # [B, T]
        order = score.argsort(dim=-1, stable=True)
        apart = score.gather(1, order)[..., None] - score[:, None]  # of positions and tokens, [B, T, T]
        soft = (-apart.abs()).softmax(-1)
        move = one_hot(order, h.shape[1]).to(h) + (soft - soft.detach())
        out: Tensor = move.mT @ self.mixer(move @ h)
        return out
