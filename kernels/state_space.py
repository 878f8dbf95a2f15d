"""State spaces: S4D's impulse response, Mamba's selective scan, and Mamba-2's scan with one decay for a whole head."""

from __future__ import annotations

from torch import Tensor

from gen.kernels import reference
from gen.kernels.backends import s4d_torch, selective_scan_torch, selective_scan_triton, ssd_torch
from gen.kernels.dispatch import Backend, Op

__all__ = ["s4d_kernel", "selective_scan", "ssd"]


def _s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """K [H, length], the answer to an impulse: K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n).

    A, C: complex [H, N/2], one of each conjugate pair, Re A < 0; B is 1. dt: [H]. (S4D, Gu et al. 2022,
    arXiv 2206.11893, equation 6: zero-order hold.)
    """
    if A.shape != C.shape or A.ndim != 2 or dt.ndim != 1 or dt.shape[0] != A.shape[0]:
        given = ", ".join(str(list(v.shape)) for v in (A, C, dt))
        raise ValueError(f"s4d_kernel: A, C, dt are {given}; they must be [H, N/2], [H, N/2] and [H]")
    if not (A.is_complex() and C.is_complex()):
        raise ValueError(f"s4d_kernel: A and C are {A.dtype} and {C.dtype}; they must be complex")
    return A, C, dt, length


def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t: [b, T, D], channels last.

    u, delta: [b, T, D], delta positive (bias and softplus are the caller's). A: [D, N], negative. B, C: [b, T, N]. What
    passes by the states, D u, and the gate are the caller's. (Mamba, Gu & Dao 2023, arXiv 2312.00752, equation 2, with
    the public code's delta B.)
    """
    b, t, d = u.shape
    wanted = {"delta": (delta, (b, t, d)), "A": (A, (d, A.shape[-1]))}
    wanted |= {name: (v, (b, t, A.shape[-1])) for name, v in (("B", B), ("C", C))}
    _check("selective_scan", wanted)
    return u, delta, A, B, C


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


s4d_kernel = Op(
    "s4d_kernel",
    _s4d_kernel,
    (
        Backend("factored", s4d_torch.refuses, s4d_torch.run),
        Backend("reference", s4d_torch.anything, reference.s4d_kernel),
    ),
)

selective_scan = Op(
    "selective_scan",
    _selective_scan,
    (
        Backend("triton", selective_scan_triton.refuses, selective_scan_triton.run),
        Backend("torch", selective_scan_torch.refuses, selective_scan_torch.run),
        Backend("reference", selective_scan_torch.anything, reference.selective_scan),
    ),
)

ssd = Op(
    "ssd",
    _ssd,
    (
        Backend("quadratic", ssd_torch.quadratic_refuses, ssd_torch.quadratic),
        Backend("chunked", ssd_torch.anything, ssd_torch.chunked),
        Backend("reference", ssd_torch.anything, reference.ssd),
    ),
)
