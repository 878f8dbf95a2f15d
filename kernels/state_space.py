"""State spaces: the linear recurrence, S4D's impulse response, Mamba's selective scan, and Mamba-2's with one decay."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels import reference
from gen.kernels.backends import (
    linear_scan_torch,
    s4d_torch,
    s4d_triton,
    selective_scan_torch,
    selective_scan_triton,
    selective_scan_whole,
    ssd_torch,
    ssd_triton,
)
from gen.kernels.dispatch import Backend, Op

__all__ = ["linear_scan", "s4d_kernel", "selective_scan", "ssd"]


def _linear_scan(
    a: Tensor, b: Tensor, start: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """h [B, T, ...] with h_t = a_t h_(t-1) + b_t over dimension 1; real or complex.

    a: [B, T, ...], or 1 in place of any size but T's. b: [B, T, ...]. start: h_(-1) [B, ...]; zero without it.
    reverse: h_t = a_(t+1) h_(t+1) + b_t instead, from the last to the first, which is how gradients flow; without a
    start.
    """
    if start is not None and reverse:
        raise ValueError("linear_scan: a scan from the last to the first takes no start")
    if a.is_complex() and not b.is_complex():
        raise ValueError(f"linear_scan: a is {a.dtype} and b {b.dtype}; of a complex a, b must be complex too")
    return a, b, start, reverse


def _s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """K [H, length], the answer to an impulse: K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n).

    A: complex [H, N/2], one of each conjugate pair, Re A < 0; B is 1. C: complex [H, N/2], or [W, H, N/2] for W kernels
    of the same states, K [W, H, length]. dt: [H]. (S4D, Gu et al. 2022, arXiv 2206.11893, equation 6: zero-order hold.)
    """
    if A.ndim != 2 or C.shape[-2:] != A.shape or C.ndim > 3 or dt.ndim != 1 or dt.shape[0] != A.shape[0]:
        given = ", ".join(str(list(v.shape)) for v in (A, C, dt))
        raise ValueError(f"s4d_kernel: A, C, dt are {given}; they must be [H, N/2], [(W,) H, N/2] and [H]")
    if not (A.is_complex() and C.is_complex()):
        raise ValueError(f"s4d_kernel: A and C are {A.dtype} and {C.dtype}; they must be complex")
    return A, C, dt, length


def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    order: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, bool]:
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t: [b, T, D], channels last.

    u, delta: [b, T, D], delta positive (bias and softplus are the caller's). A: [D, N], negative. B, C: [b, T, N]. What
    passes by the states, D u, and the gate are the caller's. order: int64 [T], the tokens as the scan visits them, each
    once; from the first to the last without it. reverse: visits them the other way round. Every tensor, y too, has its
    tokens where they were: an order is a way to read, not to lay out. (Mamba, Gu & Dao 2023, arXiv 2312.00752, equation
    2, with the public code's delta B; orders as in ZigMa, Hu et al. 2024, arXiv 2403.13802.)
    """
    b, t, d = u.shape
    wanted = {"delta": (delta, (b, t, d)), "A": (A, (d, A.shape[-1]))}
    wanted |= {name: (v, (b, t, A.shape[-1])) for name, v in (("B", B), ("C", C))}
    _check("selective_scan", wanted if order is None else wanted | {"order": (order, (t,))})
    if order is not None and order.dtype != torch.int64:
        raise ValueError(f"selective_scan: order is {order.dtype}; it must be torch.int64")
    return u, delta, A, B, C, order, reverse


def _ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y_t = C_t h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T in every head: [b, T, H, P].

    x: [b, T, H, P]. delta: [b, T, H], positive. A: [H], negative: one decay for all of a head's state [N, P]. B, C:
    [b, T, G, N], each for H / G heads side by side. (Mamba-2, Dao & Gu 2024, arXiv 2405.21060.)
    """
    b, t, h, _ = x.shape
    g, n = B.shape[2:]
    _check("ssd", {"delta": (delta, (b, t, h)), "A": (A, (h,)), "B": (B, (b, t, g, n)), "C": (C, (b, t, g, n))})
    if h % g:
        raise ValueError(f"ssd: {h} heads do not divide into {g} groups")
    return x, delta, A, B, C


def _check(op: str, wanted: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for name, (given, shape) in wanted.items():
        if given.ndim != len(shape) or any(a != b for a, b in zip(given.shape, shape, strict=True)):
            raise ValueError(f"{op}: {name} is {list(given.shape)}; it must be {list(shape)}")


linear_scan = Op(
    "linear_scan",
    _linear_scan,
    (
        Backend("in_order", linear_scan_torch.in_order_refuses, linear_scan_torch.in_order),
        Backend("in_pairs", linear_scan_torch.anything, linear_scan_torch.in_pairs),
        Backend("reference", linear_scan_torch.anything, reference.linear_scan),
    ),
)

s4d_kernel = Op(
    "s4d_kernel",
    _s4d_kernel,
    (
        Backend("triton", s4d_triton.refuses, s4d_triton.run),
        Backend("direct", s4d_torch.direct_refuses, s4d_torch.direct),
        Backend("factored", s4d_torch.factored_refuses, s4d_torch.factored),
        Backend("reference", s4d_torch.anything, reference.s4d_kernel),
    ),
)

selective_scan = Op(
    "selective_scan",
    _selective_scan,
    (
        Backend("triton", selective_scan_triton.refuses, selective_scan_triton.run),
        Backend("chunks", selective_scan_torch.refuses, selective_scan_torch.run),
        Backend("whole", selective_scan_torch.anything, selective_scan_whole.run),
        Backend("reference", selective_scan_torch.anything, reference.selective_scan),
    ),
)

ssd = Op(
    "ssd",
    _ssd,
    (
        Backend("triton", ssd_triton.quadratic_refuses, ssd_triton.whole),
        Backend("triton_chunked", ssd_triton.refuses, ssd_triton.chunked),
        Backend("quadratic", ssd_torch.quadratic_refuses, ssd_torch.quadratic),
        Backend("chunked", ssd_torch.anything, ssd_torch.chunked),
        Backend("reference", ssd_torch.anything, reference.ssd),
    ),
)
