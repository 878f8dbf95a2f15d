"""Costs of a U-Net's evaluation, and of sharing out its rows over processes; nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.kernels.sequence_parallel.patch_rows import convolution_halo, transposed_halo
from gen.kernels.sequence_parallel.patches import edge_bytes, patch_exchange_bytes, patch_window
from gen.models.engines.lib.operations import attend

__all__ = ["UNetSize", "unet_size"]

functional = nn.functional


@dataclass
class UNetSize:
    """A U-Net's evaluation on one sample, in the numbers that its costs depend on; made by `unet_size`.

    Attributes:
        state: numbers in x.
        dtype: of what is computed and sent.
        whole: operations that all processes compute: those of the first layer and of conditions.
        shared: operations that are shared out, but for those of self-attention.
        attention: of each self-attention the pixels, the heads and the width of a head.
        edges: of each layer that needs rows of the neighbours all rows, the numbers in one, and how many it needs
            above and below its own.
        groups: of each group norm.
        products: number of convolutions, products of matrices and attentions.
        output: numbers that the last layer returns.
    """

    state: int = 0
    dtype: torch.dtype = torch.float32
    whole: float = 0.0
    shared: float = 0.0
    attention: list[tuple[int, int, int]] = field(default_factory=list)
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    products: int = 0
    output: int = 0

    @property
    def exchanges(self) -> int:
        """How often a process exchanges something in an evaluation, but for its output."""
        return len(self.attention) + len(self.edges) + len(self.groups)

    def flops(self, part: int = 0, parts: int = 1, portion: float | None = None) -> float:
        """Return the operations of one process.

        Args:
            part: its number.
            parts: how many there are, P.
            portion: of a neighbour's keys that are attended to; None for all of all parts.
        """
        pairs = (heads * width * (n // parts) * len(patch_window(part, parts, n, portion))
                 for n, heads, width in self.attention)  # fmt: skip
        return self.whole + self.shared / parts + 4 * sum(pairs)

    def sent(self, part: int, parts: int, portion: float | None = None) -> int:
        """Return the bytes that a process sends in an evaluation, but for its output.

        Edges of convolutions to its neighbours, two moments of each group to all, and of attention keys and values to
        all or, of a portion, to its neighbours.

        Args:
            part, parts, portion: as of `flops`.
        """
        moments = 2 * sum(self.groups) * torch.promote_types(self.dtype, torch.float32).itemsize
        sent = (parts - 1) * moments
        for rows, numbers, above, below in self.edges:
            sent += edge_bytes(self._meta(1, rows // parts, numbers), part, parts, above, below)
        for n, heads, width in self.attention:
            sent += patch_exchange_bytes(self._meta(1, n // parts, 2, heads, width), part, parts, portion)
        return sent

    def output_sent(self, parts: int) -> int:
        """Return the bytes of its part of the output that a process sends to all others."""
        return (parts - 1) * self.output * self.dtype.itemsize // parts

    def _meta(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device="meta")


def unet_size(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> UNetSize:
    """Return the size of a U-Net that the engine `patches` shares out, by an evaluation; on "meta" it costs nothing.

    Args:
        net: of this project, or of a pipeline.
        x: one sample, [1, C, H, W].
        t: [1].
        cond: of that sample.

    Raises:
        UserError: for more samples, and for a network without convolutions.
    """
    if len(x) != 1:
        raise UserError(f"the size of a U-Net is that of one sample; x has {len(x)}")
    size = UNetSize(x.numel(), x.dtype)
    with torch.no_grad(), Count(size):
        net(x, t, cond)
    if not size.output:
        raise UserError(f"{type(net).__name__} has no convolutions: give its TransformerSize")
    return size


class Count(TorchFunctionMode):
    """Adds PyTorch's operations on the feature maps of a U-Net to its size, within a `with`.

    Args:
        size: added to.
    """

    def __init__(self, size: UNetSize):
        super().__init__()
        self.size, self.pixels = size, 0
        self.padded: Tensor | None = None  # the newest map that was padded by rows
        self.kinds: dict[Any, Callable[..., None]] = {
            torch.conv1d: self.conv1d, torch.conv2d: self.conv2d, torch.conv_transpose2d: self.conv_transpose2d,
            functional.linear: self.linear, functional.group_norm: self.group_norm, functional.pad: self.pad,
            attend: self.attention,
        }  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.kinds:
            self.kinds[func](out, *args, **(kwargs or {}))
        return out

    def product(self, flops: float, shared: bool) -> None:
        """Add a product of so many operations, which is shared out or computed by all."""
        self.size.products += 1
        self.size.shared += flops * shared
        self.size.whole += flops * (not shared)

    def conv1d(self, out: Tensor, h: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add a convolution of pixels [B, C, T]."""
        self.product(2 * out.numel() * weight[0].numel(), shared=True)

    def linear(self, out: Tensor, h: Tensor, weight: Tensor, *args: Any) -> None:
        """Add a product of pixels [B, T, C], or of a condition."""
        self.product(2 * out.numel() * weight.shape[1], shared=h.ndim == 3 and h.shape[1] == self.pixels)

    def conv2d(self, out: Tensor, h: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
               dilation: Any = 1, groups: int = 1) -> None:  # fmt: skip
        """Add a convolution; the first one is computed whole by all."""
        first, self.pixels, self.size.output = not self.pixels, math.prod(out.shape[2:]), out.numel()
        self.product(2 * out.numel() * weight[0].numel(), shared=not first)
        if first or h is self.padded:
            return
        rows, kernel, (step, dilated) = _rows(padding), weight.shape[2], (_rows(stride), _rows(dilation))
        rows = {"same": (kernel - 1) // 2, "valid": 0}.get(rows, rows)
        self.edge(h, convolution_halo(kernel, step, (rows, rows), dilated))

    def conv_transpose2d(
        self,
        out: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> None:
        """Add a transposed convolution."""
        self.pixels = math.prod(out.shape[2:])
        self.product(2 * h.numel() * weight[0].numel(), shared=True)
        self.edge(h, transposed_halo(weight.shape[2], *map(_rows, (stride, padding, output_padding, dilation))))

    def pad(self, out: Tensor, h: Tensor, pad: Any, *args: Any, **kwargs: Any) -> None:
        """Add rows around a map, which its convolution then has."""
        if h.ndim == 4 and any(pad[2:4]):
            self.padded = out
            self.edge(h, (pad[2], pad[3]))

    def group_norm(self, out: Tensor, h: Tensor, groups: int, *args: Any, **kwargs: Any) -> None:
        """Add a group norm."""
        self.size.groups.append(groups)

    def attention(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add attention, of pixels to pixels or to a text."""
        heads, n, width = q.shape[1:]
        if k.shape[2] == self.pixels:
            self.size.products += 1
            self.size.attention.append((n, heads, width))
        else:
            self.product(4 * q.numel() * k.shape[2], shared=True)

    def edge(self, h: Tensor, halo: tuple[int, int] | None) -> None:
        """Add an exchange of rows of h [B, C, H, W] with both neighbours."""
        if halo is None:
            raise UserError("a convolution of this U-Net does not keep rows in their parts")
        if any(halo):
            self.size.edges.append((h.shape[2], h.shape[1] * h.shape[3], *halo))


def _rows(value: Any) -> Any:
    """Return what a convolution has along rows."""
    return value[0] if isinstance(value, (tuple, list)) else value
