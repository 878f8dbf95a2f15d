"""One picture's decoding on several processes, of which each decodes an equal share of the rows."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.collectives import Group
from gen.kernels.sequence_parallel.rows import PictureRows

__all__ = ["SharedDecoder", "share_decoding"]

LOCAL = (nn.SiLU, nn.ReLU, nn.Identity, nn.Dropout)  # each number by itself
MADE_OF_PARTS = (  # which only call their parts, add, and repeat pixels
    "Sequential", "ModuleList", "Decoder", "UNetMidBlock2D", "UpDecoderBlock2D", "ResnetBlock2D", "Upsample2D",
    "DecoderTiny", "AutoencoderTinyBlock",
)  # fmt: skip


def share_decoding(autoencoder: Any, group: Group = None) -> SharedDecoder:
    """Let the processes of a group decode every picture together: a pipeline's `vae`, or the `net` of an autoencoder.

    Each has all latents and gets all pictures, which are those of one process within rounding: convolutions take the
    rows that they reach from the neighbours, group norms share their statistics, and attention has all rows, at the
    size of the latents. All decode the same latents at the same moment. `autoencoder.decoder = shared.whole` ends it.

    Args:
        autoencoder: a module with a `decoder`, such as diffusers' AutoencoderKL and AutoencoderTiny; changed in place.
        group: the processes; all by default.

    Returns:
        The decoder that is now the autoencoder's.

    Raises:
        UserError: without processes, and for a decoder with other parts.
    """
    if not dist.is_initialized():
        raise UserError("share_decoding needs processes: start them with torchrun and init_process_group")
    shared = SharedDecoder(autoencoder.decoder, PictureRows(group))
    autoencoder.decoder = shared
    return shared


class SharedDecoder(nn.Module):
    """A decoder of latents [B, C, h, w], called like it, that computes this process's rows; it shares all weights.

    Attributes:
        whole: the decoder itself.
        rows: the processes, and what this one has sent.
    """

    def __init__(self, whole: nn.Module, rows: PictureRows):
        super().__init__()
        self.rows = rows
        replaced: dict[int, nn.Module] = {}
        _replace(whole, rows, replaced)
        shared = {id(weight): weight for weight in (*whole.parameters(), *whole.buffers())}
        self.part = copy.deepcopy(whole, {**shared, **replaced})
        object.__setattr__(self, "whole", whole)  # no sub-module, whose weights would be there twice

    def forward(self, z: Tensor, *given: Any) -> Tensor:
        if torch.is_grad_enabled() and z.requires_grad:
            raise UserError("share_decoding passes no gradients on: decode under torch.no_grad()")
        if z.shape[2] % self.rows.parts:
            raise UserError(
                f"share_decoding: {z.shape[2]} rows of latents do not divide over {self.rows.parts} processes"
            )
        return self.rows.gather(self.part(self.rows.local(z), *given))


class RowConv(nn.Module):
    """A convolution of the own rows, with those of the neighbours that it reaches."""

    def __init__(self, conv: nn.Conv2d, rows: PictureRows):
        super().__init__()
        self.conv, self.rows, self.reach = conv, rows, conv.kernel_size[0] // 2

    def forward(self, x: Tensor) -> Tensor:
        if not self.reach:
            return self.conv(x)
        if x.shape[2] < self.reach:
            raise UserError(f"share_decoding: {x.shape[2]} rows on a process; a convolution reaches {self.reach}")
        x, above, below = self.rows.with_neighbours(x, self.reach)
        out = self.conv(x)  # whose rows of the neighbours' lack what lies beyond
        return out[:, :, above : out.shape[2] - below]


class RowNorm(nn.Module):
    """A group norm of the own rows, with the statistics of all."""

    def __init__(self, norm: nn.GroupNorm, rows: PictureRows):
        super().__init__()
        self.norm, self.rows = norm, rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.group_norm(x, self.norm.num_groups, self.norm.weight, self.norm.bias, self.norm.eps)


class AllRows(nn.Module):
    """A module that needs all rows at once, of which the own are kept."""

    def __init__(self, module: nn.Module, rows: PictureRows):
        super().__init__()
        self.module, self.rows = module, rows

    def forward(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        return self.rows.local(self.module(self.rows.gather(x), *given, **named))


def _replace(module: nn.Module, rows: PictureRows, replaced: dict[int, nn.Module]) -> None:
    """Add what stands for each part of a module that looks beyond its own rows, by the part's id."""
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        height, wanted = module.kernel_size[0], module.kernel_size[0] // 2
        zeros = module.padding_mode == "zeros" and module.padding in ("same", (wanted, module.kernel_size[1] // 2))
        if module.stride != (1, 1) or module.dilation != (1, 1) or height % 2 == 0 or not zeros:
            raise UserError(f"share_decoding: {module}; allowed: convolutions of stride 1 that keep the size")
        replaced[id(module)] = RowConv(module, rows)
    elif isinstance(module, nn.GroupNorm):
        replaced[id(module)] = RowNorm(module, rows)
    elif kind == "Attention":
        replaced[id(module)] = AllRows(module, rows)
    elif kind in MADE_OF_PARTS:
        for part in module.children():
            _replace(part, rows, replaced)
    elif not (isinstance(module, LOCAL) or (isinstance(module, nn.Upsample) and module.mode == "nearest")):
        allowed = "convolutions, group norms, attention at the size of latents, and nearest pixels repeated"
        raise UserError(f"share_decoding: the decoder has a {kind}; allowed: {allowed}")
