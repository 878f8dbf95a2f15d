"""ConvS5: a state space over frames, whose states are images and whose maps are convolutions (Smith et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from gen.config.errors import UserError
from gen.kernels.linear_scan import linear_scan
from gen.models.layers.ssm.hippo import conjugate_pairs, legs
from gen.models.layers.ssm.mamba import log_uniform

__all__ = ["ConvS5"]


class ConvS5(nn.Module):
    """Frames u [B, T, width, H, W] -> outputs [B, T, width, H, W] and the last state [B, state/2, H, W], complex.

    x_t = A_bar x_(t-1) + B_bar * u_t and y_t = 2 Re(C * x_t) + D * u_t, where * is a convolution over the picture and
    A_bar acts on each state by itself (a 1 x 1 kernel), so that all frames are one scan of logarithmic depth.

    state: N, in `blocks` blocks of HiPPO-LegS's normal part, of each conjugate pair of which one is kept. kernel: odd
    side of B's, C's and D's kernels. clip: the real parts of A are held at -1e-4 or below, for stability. Start: A the
    blocks' eigenvalues, B = V^* times, and C = (...) V of, He-normal kernels, V being the eigenvectors; one step per
    state, log-uniform in [1e-3, 0.1], zero-order hold. (Equations 6-9; init as in the public code.)
    """

    def __init__(self, width: int, state: int = 256, kernel: int = 3, blocks: int = 1, clip: bool = True):
        super().__init__()
        if state % (2 * blocks) or kernel % 2 == 0:
            raise UserError(f"ConvS5: state {state} must divide into {blocks} even blocks, kernel {kernel} be odd")
        A, V, _, _ = conjugate_pairs(*legs(state // blocks))
        basis = torch.kron(torch.eye(blocks), V.to(torch.complex64).contiguous())  # [N, N/2]
        self.clip, self.kernel = clip, kernel
        self.Lambda_re = nn.Parameter(A.real.float().repeat(blocks))
        self.Lambda_im = nn.Parameter(A.imag.float().repeat(blocks))
        self.log_step = nn.Parameter(log_uniform(state // 2))
        into = nn.init.kaiming_normal_(torch.empty(state, width, kernel, kernel)).to(basis.dtype)
        out = nn.init.kaiming_normal_(torch.empty(width, state, kernel, kernel)).to(basis.dtype)
        self.B = nn.Parameter(torch.view_as_real(torch.einsum("np,nuyx->puyx", basis.conj(), into)).clone())
        self.C = nn.Parameter(torch.view_as_real(torch.einsum("unyx,np->upyx", out, basis)).clone())
        self.D = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def eigenvalues(self) -> Tensor:
        """Return A, complex [N/2], in at least single precision."""
        kind = torch.promote_types(self.Lambda_re.dtype, torch.float32)
        real = self.Lambda_re.clamp(max=-1e-4) if self.clip else self.Lambda_re
        return torch.complex(real.to(kind), self.Lambda_im.to(kind))

    def forward(self, u: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scan frames u [B, T, width, H, W], from the state `start` [B, state/2, H, W], complex; zero without it."""
        A, frames = self.eigenvalues(), u.flatten(0, 1)  # [B T, width, H, W]
        step = A * self.log_step.to(A.real.dtype).exp()
        hold = torch.expm1(step) / A  # [N/2]
        B, C = (torch.view_as_complex(v.to(A.real.dtype).contiguous()) for v in (self.B, self.C))
        driven = self._convolve(frames.to(A.dtype), hold[:, None, None, None] * B)
        driven = driven.reshape(*u.shape[:2], *driven.shape[1:])  # [B, T, N/2, H, W]
        a = step.exp()[:, None, None].expand(1, u.shape[1], -1, 1, 1)
        x = linear_scan(a, driven, start)
        y = 2 * self._convolve(x.flatten(0, 1), C).real.to(u.dtype) + self.D(frames)
        return y.reshape(u.shape), x[:, -1]

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, padding=self.kernel // 2)
