"""Inputs of scans and of linear attention."""

from __future__ import annotations

import torch


def scan(b=2, length=21, d=6, n=3, dtype=torch.float32):
    """u, delta, A, B, C of a selective scan."""
    u, delta = torch.randn(b, length, d), torch.rand(b, length, d) * 0.3
    B, C = torch.randn(b, length, n), torch.randn(b, length, n)
    kind = torch.promote_types(dtype, torch.float32)
    A = -torch.arange(1.0, n + 1).repeat(d, 1) * (0.5 + torch.rand(d, n))
    return u.to(dtype), delta.to(dtype), A.to(kind), B.to(dtype), C.to(dtype)


def heads(b=2, length=21, h=4, p=5, g=2, n=3, dtype=torch.float32):
    """x, delta, A, B, C of a Mamba-2 scan."""
    x, delta, A = torch.randn(b, length, h, p), torch.rand(b, length, h) * 0.3, -torch.rand(h) * 4
    return tuple(v.to(dtype) for v in (x, delta, A, torch.randn(b, length, g, n), torch.randn(b, length, g, n)))


def tokens(b=2, h=2, length=37, d=12, e=9, dtype=torch.float32):
    """q, k, v of linear attention: views of [b, T, h, ...]."""
    sizes = (d, d, e)
    return tuple((torch.randn(b, length, h, size) * 2).to(dtype).transpose(1, 2) for size in sizes)


def links(b=2, length=21, dtype=torch.float64):
    """a, b and start of a linear scan; a has 1 in place of the last size."""
    a = torch.rand(b, length, 3, 1, dtype=dtype) * 1.2
    return a, torch.randn(b, length, 3, 4, dtype=dtype), torch.randn(b, 3, 4, dtype=dtype)


def modes(h=4, n=6, dtype=torch.float32, ways=()):
    """A, C, dt of S4D; ways: (W,) for W kernels of the same states."""
    wide = torch.complex64 if dtype == torch.float32 else torch.complex128
    A = torch.complex(-torch.rand(h, n) - 0.1, torch.pi * torch.arange(n).float().repeat(h, 1))
    dt = torch.empty(h).uniform_(-7, -2.3).exp()
    return A.to(wide), torch.randn(*ways, h, n, dtype=wide), dt.to(dtype)
