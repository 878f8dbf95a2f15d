"""Images in sub-bands: the Haar wavelet in two dimensions, and the Laplacian pyramid, both invertible.

One Haar step maps every 2 x 2 square into its mean (times 2) and three differences, by an orthogonal matrix that is
its own inverse: the energy stays, and a constant image leaves nothing in the differences. `dwt` repeats the step on the
means only, as Mallat (1989) does; `packet` repeats it on all four bands, as DiMSUM does (Phung et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gen.config.errors import UserError

__all__ = ["dwt", "idwt", "inverse_laplacian", "inverse_packet", "laplacian", "packet", "packet_matrix"]

# Rows: the bands ll, lh (top less bottom), hl (left less right), hh. Columns: the square's pixels, row by row.
HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


def packet_matrix(levels: int) -> Tensor:
    """Return the orthogonal matrix of `packet` on a square of side 2^levels, float64 [4^levels, 4^levels].

    Rows are bands, the first step's the most significant digit in base 4; columns are the pixels, row by row. It is the
    Walsh-Hadamard transform, up to the order of its rows.

    Args:
        levels: number of Haar steps.
    """
    step = torch.tensor(HAAR, dtype=torch.float64) / 2
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(levels):  # the first step's pixels are nearest neighbours: the last bits of row and column
        matrix = torch.kron(step, matrix)
    # Now bands and pixels have the last step first. Bands: reverse the digits. Pixels: digits are (row, column) bits.
    bands = torch.arange(4**levels).reshape((4,) * levels).permute(tuple(reversed(range(levels)))).flatten()
    bits = torch.arange(4**levels).reshape((2,) * (2 * levels))
    pixels = bits.permute((*range(0, 2 * levels, 2), *range(1, 2 * levels, 2))).flatten()
    return matrix[bands][:, pixels]


def packet(x: Tensor, levels: int, scale: float = 1.0) -> Tensor:
    """Return all bands after Haar steps on every band, [B, C, 4^levels, H / p, W / p] with p = 2^levels.

    Args:
        x: image [B, C, H, W]; UserError unless p divides H and W.
        levels: number of Haar steps.
        scale: factor on every band; DiMSUM's is 2^-levels, with which the first band is the squares' mean.
    """
    p = _side(x, levels)
    height, width = x.shape[2] // p, x.shape[3] // p
    blocks = x.reshape(*x.shape[:2], height, p, width, p)
    pixels = blocks.permute(0, 1, 2, 4, 3, 5).flatten(4)  # [B, C, h, w, p p]
    matrix = (scale * packet_matrix(levels)).to(x)
    return torch.movedim(pixels @ matrix.mT, 4, 2)


def inverse_packet(bands: Tensor, levels: int, scale: float = 1.0) -> Tensor:
    """Return the image of `packet`'s bands, [B, C, h 2^levels, w 2^levels].

    Args:
        bands: [B, C, 4^levels, h, w].
        levels, scale: as given to `packet`.
    """
    p = 2**levels
    pixels = torch.movedim(bands, 2, 4) @ (packet_matrix(levels) / scale).to(bands)  # [B, C, h, w, p p]
    blocks = pixels.reshape(*pixels.shape[:4], p, p).permute(0, 1, 2, 4, 3, 5)  # [B, C, h, p, w, p]
    return blocks.flatten(4, 5).flatten(2, 3)


def dwt(x: Tensor, levels: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Return the Haar wavelet transform of an image.

    Args:
        x: image [B, C, H, W]; UserError unless 2^levels divides H and W.
        levels: number of Haar steps.

    Returns:
        The means [B, C, H / 2^levels, W / 2^levels], and each level's differences [B, C, 3, h, w], the finest first:
        lh, hl, hh.
    """
    _side(x, levels)
    details = []
    for _ in range(levels):
        bands = packet(x, 1)
        x, detail = bands[:, :, 0], bands[:, :, 1:]
        details.append(detail)
    return x, details


def idwt(means: Tensor, details: list[Tensor]) -> Tensor:
    """Return the image [B, C, H, W] of a wavelet transform.

    Args:
        means, details: as `dwt` returned them.
    """
    for detail in reversed(details):
        means = inverse_packet(torch.cat([means[:, :, None], detail], 2), 1)
    return means


def laplacian(x: Tensor, levels: int) -> list[Tensor]:
    """Return the Laplacian pyramid: levels + 1 images, coarsest first, each twice as large (Burt & Adelson 1983).

    The first is x at its smallest size, the others are the differences of sizes: down(x, s) - up(down(x, s - 1)). Both
    are bilinear; down by two is the mean of each 2 x 2 square.

    Args:
        x: image [B, C, H, W]; UserError unless 2^levels divides H and W.
        levels: number of halvings.
    """
    _side(x, levels)
    sizes = [x]
    for _ in range(levels):
        sizes.append(_resize(sizes[-1], 0.5))
    return [sizes[-1]] + [fine - _resize(coarse, 2.0) for fine, coarse in zip(sizes[-2::-1], sizes[:0:-1], strict=True)]


def inverse_laplacian(parts: list[Tensor]) -> Tensor:
    """Return the image [B, C, H, W] of a Laplacian pyramid.

    Args:
        parts: as `laplacian` returned them.
    """
    x = parts[0]
    for part in parts[1:]:
        x = _resize(x, 2.0) + part
    return x


def _resize(x: Tensor, factor: float) -> Tensor:
    return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _side(x: Tensor, levels: int) -> int:
    """Return 2^levels; UserError unless it divides x's height and width."""
    p: int = 2**levels
    if x.shape[2] % p or x.shape[3] % p:
        raise UserError(f"{levels} levels need a height and width divisible by {p}; got {x.shape[2]} x {x.shape[3]}")
    return p
