"""S4: a state space that is diagonal plus low rank, as one long convolution (Gu, Goel & Re 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from gen.config.errors import UserError
from gen.kernels.long_convolution import long_convolution
from gen.models.layers.ssm.hippo import conjugate_pairs, legs
from gen.models.layers.ssm.mamba import log_uniform

__all__ = ["S4", "dplr_dense", "dplr_kernel", "untruncated"]


def dplr_kernel(A: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Return the kernel K_l = C' A_bar^l B_bar of the state space diag(A) - P P^*, discretised by the bilinear rule.

    With C = C' (1 - A_bar^length) the first `length` numbers of K are a ratio of polynomials at the roots of unity w,
    computed from sums over the N eigenvalues (Cauchy kernel) and Woodbury's identity for the rank one, without a power
    of a matrix. (S4, section 3, algorithm 1; here both sides are multiplied by 1 + w, so that w = -1, where the
    published form divides by zero, is like others.)

    Args:
        A, P, B, C: complex [H, N/2], one of each conjugate pair.
        dt: steps [H].
        length: of the kernel.

    Returns:
        K, real [H, length].
    """
    angle = -2 * math.pi / length * torch.arange(length // 2 + 1, device=A.device, dtype=dt.dtype)
    w = torch.polar(torch.ones_like(angle), angle)  # [F]: the real kernel's transform has half the frequencies
    node = 2 / dt[:, None] * (1 - w)  # [H, F]

    def resolvent(v: Tensor) -> Tensor:
        """Return the sum over all N of v_n / (node - (1 + w) A_n), [H, F]; v complex [H, N/2]."""
        upper = v[..., None] / (node[:, None] - (1 + w) * A[..., None])
        lower = v.conj()[..., None] / (node[:, None] - (1 + w) * A.conj()[..., None])
        return (upper + lower).sum(1)

    left, right, inner = resolvent(C * P), resolvent(P.conj() * B), resolvent(P * P.conj())
    spectrum = 2 * (resolvent(C * B) - (1 + w) * left * right / (1 + (1 + w) * inner))
    return torch.fft.irfft(spectrum, n=length)


def dplr_dense(A: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Return A_bar [H, N, N] and B_bar [H, N] of the bilinear rule, with both of each conjugate pair.

    A_bar = (1 - dt/2 M)^-1 (1 + dt/2 M), B_bar = (1 - dt/2 M)^-1 dt B, M = diag(A) - P P^*.

    Args:
        A, P, B: complex [H, N/2], one of each conjugate pair.
        dt: steps [H].
    """
    A, P, B = (torch.cat([v, v.conj()], 1) for v in (A, P, B))
    M = dt[:, None, None] / 2 * (torch.diag_embed(A) - P[..., None] * P.conj()[:, None])
    one = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve(one - M, one + M), torch.linalg.solve(one - M, dt[:, None] * B)


def untruncated(A: Tensor, P: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """Return C' [H, N] of the recurrence, C' = C (1 - A_bar^length)^-1.

    Args:
        A, P, C: complex [H, N/2], as of dplr_kernel.
        dt: steps [H].
        length: of the kernel.
    """
    step, _ = dplr_dense(A, P, torch.zeros_like(A), dt)
    one = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
    rest = one - torch.linalg.matrix_power(step, length)
    both: Tensor = torch.linalg.solve(rest.mT, torch.cat([C, C.conj()], 1)[..., None])  # [H, N, 1]
    return both[..., 0]


class S4(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], T at most `length`: a long convolution per channel, GELU, a gated map.

    length: the sequence length for which the kernel is exact from the start; C is held in the form that is truncated
    to it, as published. state: N, even. start: "legs", the HiPPO-LegS matrix. Steps start log-uniform in [1e-3, 0.1],
    C and D normal. Every weight is trained; -Re A is kept positive by its logarithm, and diag(A) - P P^* is stable for
    any P.
    """

    def __init__(self, width: int, length: int, state: int = 64, start: Literal["legs"] = "legs"):
        super().__init__()
        if state % 2:
            raise UserError(f"S4.state is {state}; it counts conjugate pairs and must be even")
        A, _, B, P = conjugate_pairs(*legs(state))
        self.length = length
        self.log_dt = nn.Parameter(log_uniform(width))
        self.log_A_real = nn.Parameter((-A.real).log().float().repeat(width, 1))
        self.A_imag = nn.Parameter(A.imag.float().repeat(width, 1))
        self.P = nn.Parameter(torch.view_as_real(P[:, 0]).float().repeat(width, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(B).float().repeat(width, 1, 1))
        self.C = nn.Parameter(torch.randn(width, state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(width))
        self.output_linear = nn.Linear(width, 2 * width)

    def system(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return A, P, B, C [width, N/2] and dt [width], in at least single precision."""
        kind = torch.promote_types(self.log_dt.dtype, torch.float32)
        A = torch.complex(-self.log_A_real.to(kind).exp(), self.A_imag.to(kind))
        P, B, C = (torch.view_as_complex(v.to(kind).contiguous()) for v in (self.P, self.B, self.C))
        return A, P, B, C, self.log_dt.to(kind).exp()

    def forward(self, h: Tensor) -> Tensor:
        if h.shape[1] > self.length:
            raise UserError(f"{h.shape[1]} tokens; this S4 is for at most {self.length}")
        K = dplr_kernel(*self.system(), self.length)[:, : h.shape[1]]
        y = long_convolution(h.to(K.dtype), K) + h * self.D
        out: Tensor = self.output_linear(gelu(y).to(h.dtype))  # [B, T, 2 width]
        return glu(out, -1)
