"""S4D: a diagonal state space that is the same for all tokens, run as one long convolution (Gu et al. 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from gen.config.errors import UserError
from gen.kernels.linear_scan import linear_scan
from gen.kernels.long_convolution import long_convolution
from gen.kernels.s4d import s4d_kernel
from gen.models.layers.ssm.hippo import diagonal
from gen.models.layers.ssm.mamba import log_uniform

__all__ = ["S4D", "s4d_scan"]

Kind = Literal["legs", "inv", "lin", "quad", "real"]


def s4d_scan(A: Tensor, C: Tensor, dt: Tensor, u: Tensor) -> Tensor:
    """Return the output [B, T, H] of the state space of gen.kernels.s4d.s4d_kernel as a recurrence over tokens.

    Args:
        A, C: complex [H, N/2], one of each conjugate pair.
        dt: steps [H].
        u: inputs [B, T, H].
    """
    step = dt[:, None] * A  # [H, N/2]
    states = linear_scan(step.exp().expand(1, u.shape[1], -1, -1), u[..., None].to(A.dtype).expand(-1, -1, *A.shape))
    return 2 * (states * C * torch.expm1(step) / A).sum(-1).real  # over [B, T, H, N/2]


class S4D(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width]: a long convolution per channel, GELU, then a gated linear map.

    state: N; N/2 conjugate pairs are kept. start: eigenvalues to begin with (see gen.models.layers.ssm.hippo.diagonal).
    bidirectional: a second kernel reads the tokens from the last to the first, from the one after on. Weights are
    held, named and started as in the public code's short form: steps log-uniform in [1e-3, 0.1], C and D normal.
    """

    def __init__(self, width: int, state: int = 64, start: Kind = "lin", bidirectional: bool = False):
        super().__init__()
        if state % 2:
            raise UserError(f"S4D.state is {state}; it counts conjugate pairs and must be even")
        A = diagonal(start, state)
        ways = 2 if bidirectional else 1
        self.bidirectional = bidirectional
        self.log_dt = nn.Parameter(log_uniform(width))
        self.log_A_real = nn.Parameter((-A.real).log().float().repeat(width, 1))
        self.A_imag = nn.Parameter(A.imag.float().repeat(width, 1))
        self.C = nn.Parameter(torch.randn(ways, width, state // 2, 2) * 0.5**0.5)  # real, imaginary: |C|^2 is 1
        self.D = nn.Parameter(torch.randn(width))
        self.output_linear = nn.Linear(width, 2 * width)

    def kernels(self, length: int) -> Tensor:
        """Return the kernels [1 or 2, width, length], in at least float32."""
        kind = torch.promote_types(self.log_dt.dtype, torch.float32)
        A = torch.complex(-self.log_A_real.to(kind).exp(), self.A_imag.to(kind))
        C = torch.view_as_complex(self.C.to(kind).contiguous())
        return s4d_kernel(A, C, self.log_dt.to(kind).exp(), length)

    def forward(self, h: Tensor) -> Tensor:
        K = self.kernels(h.shape[1])
        if self.bidirectional:
            ahead = torch.cat([torch.zeros_like(K[1, :, :1]), K[1, :, :-1].flip(1)], 1)  # s = -T (unused) ... -1
            both = torch.cat([K[0], ahead], 1)  # [width, 2T]
        else:
            both = K[0]
        y = long_convolution(h.to(K.dtype), both) + h * self.D
        out: Tensor = self.output_linear(gelu(y).to(h.dtype))  # [B, T, 2 width]
        return glu(out, -1)
