"""Operations on the rows of feature maps that this process has: what they need of others' rows is exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.patch_rows import (
    convolution_halo,
    corrected_moments,
    group_moments,
    transposed_halo,
    whole_moments,
)
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.exchanges import Evaluation
from gen.models.engines.lib.operations import PartOperations, attend

__all__ = ["RowOperations"]

Two = int | tuple[int, ...] | list[int]
conv2d, conv_transpose2d = torch.conv2d, torch.conv_transpose2d
functional = nn.functional


class RowOperations(PartOperations):
    """Computes, within a `with`, PyTorch's operations on feature maps [B, C, H, W] as if all rows were there.

    Convolutions get rows of the neighbours, group norms the moments of the whole, self-attention the keys and values of
    all pixels. What belongs to one pixel is left as it is.
    """

    names: ClassVar[Mapping[Any, str]] = {
        conv2d: "conv2d",
        conv_transpose2d: "conv_transpose2d",
        functional.group_norm: "group_norm",
        attend: "attention",
        functional.pad: "pad",
        functional.interpolate: "interpolate",
        functional.avg_pool2d: "avg_pool2d",
    }
    unknown = (functional.instance_norm, functional.adaptive_avg_pool2d, torch.conv3d, torch.fft.fftn, torch.baddbmm)

    def __init__(self, exchange: PatchExchange, evaluation: Evaluation, portion: float | None):
        super().__init__(exchange, evaluation, portion)
        self.padded: tuple[Tensor, tuple[int, int]] | None = None  # the newest padded map, and rows of its padding

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Two = 1,
        padding: Two | str = 0,
        dilation: Two = 1,
        groups: int = 1,
    ) -> Tensor:
        """Return this process's rows of torch.conv2d's output."""
        (step, _), (dilated, _), kernel = _two(stride), _two(dilation), weight.shape[2]
        if isinstance(padding, str):
            rows, columns = ((size - 1) // 2 * (padding == "same") for size in weight.shape[2:])
        else:
            rows, columns = _two(padding)
        there = self.padded[1] if self.padded is not None and self.padded[0] is input else None
        halo = convolution_halo(kernel, step, there or (rows, rows), dilated)
        if halo is None or (there and rows):
            raise UserError(f"the engine 'patches': a convolution of kernel {kernel}, stride {step} and padding {rows} "
                            "does not keep rows in their parts")  # fmt: skip
        if there is not None:
            pieces = list(input.chunk(len(self.exchange.own), 2))
        else:
            pieces = self._with_edges(input, *halo, step)
        out = [conv2d(piece, weight, bias, stride, (0, columns), dilation, groups) for piece in pieces]
        return torch.cat(out, 2)

    def conv_transpose2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Two = 1,
        padding: Two = 0,
        output_padding: Two = 0,
        groups: int = 1,
        dilation: Two = 1,
    ) -> Tensor:
        """Return this process's rows of torch.conv_transpose2d's output."""
        (step, _), (rows, _), (more, _), (dilated, _) = map(_two, (stride, padding, output_padding, dilation))
        halo = transposed_halo(weight.shape[2], step, rows, more, dilated)
        if halo is None:
            raise UserError(f"the engine 'patches': a transposed convolution of kernel {weight.shape[2]}, "
                            f"stride {step} and padding {rows} does not keep rows in their parts")  # fmt: skip
        out, pieces = [], self._with_edges(input, *halo, 1)
        for piece in pieces:
            more_rows = conv_transpose2d(piece, weight, bias, stride, padding, output_padding, groups, dilation)
            own = step * (input.shape[2] // len(pieces))
            out.append(more_rows[:, :, step * halo[0] :][:, :, :own])
        return torch.cat(out, 2)

    def group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Return torch's group_norm by moments of the whole, as DistriFusion corrects them where they are stale."""
        self.check(input)
        pieces = input.chunk(len(self.exchange.own), 2)
        fresh = torch.stack([group_moments(piece, num_groups) for piece in pieces])  # [own, 2, B, G]
        parts, new = self.evaluation.exchanged(self.key(), lambda: self.exchange.start_all(fresh))
        out = []
        for part, piece, own in zip(self.exchange.own, pieces, fresh, strict=True):
            mean, variance = (whole_moments(parts) if new else corrected_moments(parts, part, own))[..., None]
            values = piece.to(fresh.dtype).reshape(*mean.shape[:2], -1)  # [B, G, C / G ...]
            out.append(((values - mean) * (variance + eps).rsqrt()).to(input.dtype).reshape(piece.shape))
        normed = torch.cat(out, 2)
        per_channel = (1, -1, *(1,) * (input.ndim - 2))
        normed = normed if weight is None else normed * weight.reshape(per_channel)
        return normed if bias is None else normed + bias.reshape(per_channel)

    def pad(
        self, input: Tensor, pad: list[int] | tuple[int, ...], mode: str = "constant", value: float | None = None
    ) -> Tensor:
        """Return torch's pad, with the neighbours' rows in place of rows of zeros; a convolution comes next."""
        edges = tuple(pad[2:4])
        if input.ndim != 4 or not any(edges):
            return functional.pad(input, pad, mode, value)
        if mode != "constant" or value or len(pad) != 4:
            raise UserError(
                f"the engine 'patches': rows are padded by zeros alone, not by {mode} {value or ''}".strip()
            )
        pieces = self._with_edges(input, edges[0], edges[1], 1)
        out = functional.pad(torch.cat(pieces, 2), pad[:2])
        self.padded = out, (edges[0], edges[1])
        return out

    def interpolate(
        self,
        input: Tensor,
        size: Any = None,
        scale_factor: Any = None,
        mode: Literal["nearest", "nearest-exact"] = "nearest",
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return torch's interpolate where every pixel is repeated."""
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor]
        if size is not None or not mode.startswith("nearest") or any(int(f) != f for f in factors):
            raise UserError(f"the engine 'patches': pixels can be repeated, not interpolated ({mode} to "
                            f"{size or scale_factor})")  # fmt: skip
        return functional.interpolate(input, size, scale_factor, mode, *args, **kwargs)

    def avg_pool2d(
        self, input: Tensor, kernel_size: Two, stride: Two | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return torch's avg_pool2d of blocks of pixels that lie side by side."""
        own, rows = input.shape[2] // len(self.exchange.own), _two(kernel_size)[0]
        if args or kwargs or (stride is not None and _two(stride) != _two(kernel_size)) or own % rows:
            raise UserError(f"the engine 'patches': a mean over {rows} of {own} rows does not keep them in their parts")
        return functional.avg_pool2d(input, kernel_size)

    def _with_edges(self, h: Tensor, above: int, below: int, step: int) -> list[Tensor]:
        """Return this process's parts of h [B, C, n, W], each with the rows around it; beyond the picture is zero."""
        own = h.shape[2] // len(self.exchange.own)
        if own % step or own < max(above, below):
            raise UserError(f"the engine 'patches': parts have {own} rows where {max(step, above, below)} are needed: "
                            "take fewer parts")  # fmt: skip
        if not above and not below:
            return [h]
        self.check(h)
        rows = h.movedim(2, 1)  # [B, n, C, W]
        start = self.exchange.start_edges
        edges, _ = self.evaluation.exchanged(self.key(), lambda: start(rows, above, below))
        out = []
        for piece, (before, after) in zip(rows.chunk(len(edges), 1), edges, strict=True):
            whole = torch.cat([before, piece, after], 1).movedim(1, 2)
            missing = above - before.shape[1], below - after.shape[1]
            out.append(functional.pad(whole, (0, 0, *missing)))
        return out


def _two(value: Two) -> tuple[int, int]:
    """Return what a convolution has along rows and columns."""
    rows, columns = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return rows, columns
