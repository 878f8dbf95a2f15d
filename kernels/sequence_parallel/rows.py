"""Rows of pictures on several processes, of which each has an equal share: convolutions, group norms and gathering.

A convolution takes the rows that it reaches from the neighbours, and a group norm the statistics of all; so the numbers
are those of one process within rounding, with nothing computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from gen.kernels.sequence_parallel.collectives import Group, Traffic, accumulation_dtype, all_gather, local_tokens

__all__ = ["PictureRows", "halo_bytes", "statistics_bytes"]


def halo_bytes(x: Tensor, rows: int, part: int, parts: int) -> int:
    """Return the bytes that a process sends to its neighbours for one convolution: rows of C W numbers to each.

    Args:
        x: its own rows, [B, C, h, W].
        rows: that the convolution reaches beyond one.
        part: its number; the first and the last have one neighbour.
        parts: how many there are.
    """
    neighbours = (part > 0) + (part < parts - 1)
    return neighbours * rows * x.nbytes // x.shape[2]


def statistics_bytes(x: Tensor, groups: int, parts: int) -> int:
    """Return the bytes that a process sends for one group norm: mean and variance of each group, to all others.

    Args:
        x: its own rows, [B, C, h, W].
        groups: of channels.
        parts: how many processes there are.
    """
    return (parts - 1) * 2 * len(x) * groups * accumulation_dtype(x.dtype).itemsize


@dataclass(eq=False)
class PictureRows:
    """The processes that share out the rows of pictures [B, C, H, W], in their order; without gradients.

    Attributes:
        group: the processes; all by default.
        traffic: what this process has sent.
    """

    group: Group = None
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def parts(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group)

    @property
    def part(self) -> int:
        """Number of this process."""
        return dist.get_rank(self.group)

    def local(self, x: Tensor) -> Tensor:
        """Return this process's rows [B, C, h, W] of pictures that all have; ValueError unless rows divide."""
        return local_tokens(x, self.group, 2)

    def gather(self, x: Tensor) -> Tensor:
        """Return all rows [B, C, H, W] on every process, of each process's own."""
        return all_gather(x, self.group, self.traffic).movedim(0, 2).flatten(2, 3)

    def with_neighbours(self, x: Tensor, rows: int) -> tuple[Tensor, int, int]:
        """Return the own rows between the nearest ones of the neighbours, and how many lie above and below.

        Args:
            x: the own rows, [B, C, h, W].
            rows: of each neighbour, h at most.
        """
        ops, found = [], []
        sides = ((self.part - 1, x[:, :, :rows], 0), (self.part + 1, x[:, :, x.shape[2] - rows :], 1))
        for peer, own, tag in sides:
            there = 0 <= peer < self.parts
            theirs = x.new_empty(len(x), x.shape[1], rows if there else 0, x.shape[3])
            found.append(theirs)
            if there:
                # what goes up arrives as what comes from below, so tags are by direction
                ops.append(dist.P2POp(dist.isend, own.contiguous(), group=self.group, tag=tag, group_peer=peer))
                ops.append(dist.P2POp(dist.irecv, theirs, group=self.group, tag=1 - tag, group_peer=peer))
        for work in dist.batch_isend_irecv(ops) if ops else []:
            work.wait()
        self.traffic.sent += halo_bytes(x, rows, self.part, self.parts)
        above, below = found
        return torch.cat([above, x, below], 2), above.shape[2], below.shape[2]

    def group_norm(self, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """Return the own rows, normalised by the mean and the variance of all rows in each group of channels.

        Args:
            x: the own rows, [B, C, h, W].
            groups: of channels.
            weight, bias: [C], or None.
            eps: added to the variance, which is not corrected for its degrees of freedom.
        """
        wide = x.to(accumulation_dtype(x.dtype)).unflatten(1, (groups, -1)).flatten(2)  # [B, groups, numbers]
        var, mean = torch.var_mean(wide, -1, correction=0)
        means, variances = all_gather(torch.stack([mean, var]), self.group, self.traffic).unbind(1)  # [P, B, groups]
        mean = means.mean(0)
        scale = (variances.mean(0) + (means - mean).square().mean(0) + eps).rsqrt()
        out = ((wide - mean[..., None]) * scale[..., None]).view(x.shape).to(x.dtype)
        shape = (1, -1, 1, 1)
        out = out if weight is None else out * weight.view(shape)
        return out if bias is None else out + bias.view(shape)
