"""Exchanges of tokens between processes, with gradients, and a count of their bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gen.kernels.lib.autograd import Context

__all__ = [
    "Group",
    "Traffic",
    "accumulation_dtype",
    "all_gather",
    "all_to_all",
    "gather_tokens",
    "gather_tokens_bytes",
    "local_tokens",
]

Group = dist.ProcessGroup | None  # None: all processes


@dataclass
class Traffic:
    """Number of bytes that this process has sent to others, counted by the ops that it is passed to.

    Attributes:
        sent: bytes so far.
    """

    sent: int = 0


def local_tokens(h: Tensor, group: Group = None, dim: int = 1) -> Tensor:
    """Return this process's share of tokens that all have.

    Args:
        h: all tokens, [B, N, ...], the same on every process.
        group: the processes; all by default.
        dim: of the tokens.

    Returns:
        [B, N / P, ...].

    Raises:
        ValueError: unless P divides N.
    """
    count = dist.get_world_size(group)
    if h.shape[dim] % count:
        raise ValueError(f"local_tokens: {h.shape[dim]} tokens do not divide over {count} processes")
    return h.chunk(count, dim)[dist.get_rank(group)]


def gather_tokens(h: Tensor, *, group: Group = None, traffic: Traffic | None = None) -> Tensor:
    """Gather all tokens on every process; the gradient is the sum of those that all processes have for a share.

    Args:
        h: this process's share, [B, n, ...].
        group: the processes; all by default.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, P n, ...].
    """
    return _Gather.apply(h, group, traffic).movedim(0, 1).flatten(1, 2)  # type: ignore[no-untyped-call]


def gather_tokens_bytes(h: Tensor, processes: int, backward: bool = False) -> int:
    """Return the bytes that one process sends: its share to each of the others.

    Args:
        h: this process's share.
        processes: their number P.
        backward: adds as much for the gradients.
    """
    return (processes - 1) * h.nbytes * (1 + backward)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over processes: float32 at least.

    Args:
        dtype: of what is summed.
    """
    return torch.promote_types(dtype, torch.float32)


def all_to_all(x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
    """Send part p of x to process p, and return the parts that came from each; differentiable.

    Args:
        x: [P, ...].
        group: the processes.
        traffic: counts the bytes that this process sends.
    """
    return _AllToAll.apply(x, group, traffic)  # type: ignore[no-untyped-call]


def all_gather(x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
    """Return x of every process, [P, ...], without a gradient.

    Args:
        x: [...], of one shape everywhere.
        group: the processes.
        traffic: counts the bytes that this process sends.
    """
    count = dist.get_world_size(group)
    out = x.new_empty(count, *x.shape)
    dist.all_gather_into_tensor(out.flatten(0, 1), x.contiguous(), group=group)
    _count(traffic, x.nbytes * (count - 1))
    return out


class _AllToAll(torch.autograd.Function):
    """Autograd function of `all_to_all`, its own transpose."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.constants = group, traffic
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(out, x, group=group)
        _count(traffic, x.nbytes // len(x) * (len(x) - 1))
        return out

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_to_all(grad, *ctx.constants), None, None


class _Gather(torch.autograd.Function):
    """Autograd function of an all-gather, [...] -> [P, ...]."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.constants = group, traffic
        return all_gather(x, group, traffic)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_to_all(grad, *ctx.constants).sum(0), None, None


def _count(traffic: Traffic | None, sent: int) -> None:
    if traffic is not None:
        traffic.sent += sent
