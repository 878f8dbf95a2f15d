"""HiPPO matrices: state spaces x' = A x + B u whose state is the best memory of u's past in a polynomial basis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["conjugate_pairs", "diagonal", "legs", "legs_diagonal", "legt"]


def legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return HiPPO-LegS of n states: A [n, n], B [n] and P [n, 1] such that A + P P^T is normal; float64.

    The state holds the Legendre coefficients of all of the past, scaled to its length. A_nk is -sqrt((2n+1)(2k+1))
    below the diagonal and -(n+1) on it; B_n = sqrt(2n+1); P_n = sqrt(n + 1/2) makes it -1/2 plus a skew-symmetric
    matrix. (Gu et al. 2020, "HiPPO", theorem 2; Gu et al. 2022, "S4", appendix C.)

    Args:
        n: number of states.
    """
    k = torch.arange(n, dtype=torch.float64)
    root = (2 * k + 1).sqrt()
    A = -(root[:, None] * root).tril(-1) - torch.diag(k + 1)
    return A, root, (k + 0.5).sqrt()[:, None]


def legt(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return HiPPO-LegT of n states: A [n, n], B [n] and P [n, 2] such that A + P P^T is skew-symmetric; float64.

    The state holds the Legendre coefficients of a sliding window, here of length 2: A_nk is -sqrt((2n+1)(2k+1)) / 2 on
    and below the diagonal, with alternating sign (-1)^(n-k) above it; B_n = sqrt(2n+1) / 2. The two columns of P are
    sqrt(n + 1/2) at odd n and at even n. (Gu et al. 2020, theorem 1; the scale is the S4 code's.)

    Args:
        n: number of states.
    """
    k = torch.arange(n, dtype=torch.float64)
    root = (2 * k + 1).sqrt()
    sign = (-1.0) ** (k[:, None] - k)
    A = -0.5 * root[:, None] * root * torch.where(k[:, None] < k, sign, torch.ones_like(sign))
    P = (k + 0.5).sqrt()
    return A, 0.5 * root, torch.stack([P * (k % 2 == 1), P * (k % 2 == 0)], 1)


def conjugate_pairs(A: Tensor, B: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Diagonalise A + P P^T, and express B and P in its eigenvectors' basis: one of each conjugate pair.

    The real part of a normal A + P P^T with a constant diagonal is that diagonal; the rest is skew-symmetric, so -i
    times it is Hermitian, whose computed eigenvectors are orthogonal to rounding.

    Args:
        A: [n, n], n even.
        B: [n].
        P: [n, rank].

    Returns:
        The eigenvalues [n/2] (imaginary parts positive, ascending), eigenvectors V [n, n/2], V^* B [n/2] and V^* P
        [n/2, rank], complex128.
    """
    normal = A + P @ P.T
    real = normal.diagonal().mean()
    skew = (normal - normal.T) / 2
    imag, V = torch.linalg.eigh(-1j * skew)
    half = slice(len(imag) // 2, None)
    V = V[:, half]
    return torch.complex(real.expand_as(imag[half]), imag[half]), V, V.mH @ B.to(V.dtype), V.mH @ P.to(V.dtype)


def legs_diagonal(n: int) -> Tensor:
    """Return the n/2 eigenvalues of LegS's normal part with positive imaginary parts, ascending; complex128.

    Args:
        n: number of states.
    """
    return conjugate_pairs(*legs(n))[0]


def diagonal(kind: str, n: int) -> Tensor:
    """Return S4D's initial n/2 eigenvalues, complex128, one of each conjugate pair (Gu et al. 2022, "S4D", section 4).

    Args:
        kind: "legs", LegS's normal part; "inv", -1/2 + i (n / pi)(n / (2k + 1) - 1), its asymptotic form; "lin",
            -1/2 + i pi k, that of a Fourier basis; "quad", -1/2 + i (2k + 1)^2 / pi; "real", -(k + 1).
        n: number of states.
    """
    if kind == "legs":
        return legs_diagonal(n)
    k = torch.arange(n // 2, dtype=torch.float64)
    imag = {
        "inv": n / math.pi * (n / (2 * k + 1) - 1),
        "lin": math.pi * k,
        "quad": (2 * k + 1) ** 2 / math.pi,
        "real": torch.zeros_like(k),
    }[kind]
    return torch.complex(-(k + 1) if kind == "real" else torch.full_like(k, -0.5), imag)
