"""Magnitude-preserving layers: root mean square 1 in, 1 out.

(Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", appendix B; equation numbers
are those of that appendix. Magnitude is the root mean square, and inputs are taken to be uncorrelated.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

__all__ = ["MPConv", "MPFourier", "mp_add", "mp_cat", "mp_silu", "mp_sum", "normalise", "normalise_weights"]

DRIFT = 1e-5  # of a magnitude of 1: more than float32 rounding leaves, less than the eps of `normalise`


def normalise(x: Tensor, dim: int | None = None, eps: float = 1e-4) -> Tensor:
    """Return x over its magnitude, in at least float32 inside (eq. 47).

    Args:
        x: [N, ...].
        dim: the dimension along which to normalise; None for all but the first.
        eps: added to the magnitude.
    """
    return x / (magnitude(x, dim) + eps).to(x.dtype)


def magnitude(x: Tensor, dim: int | None = None) -> Tensor:
    """Return the root mean square along `dim`, or along all dimensions but the first, which stay as ones."""
    dims = tuple(range(1, x.ndim)) if dim is None else (dim,)
    exact = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=exact)
    return norm * math.sqrt(norm.numel() / x.numel())


def mp_silu(x: Tensor) -> Tensor:
    """Return SiLU over its magnitude on normal numbers (eq. 81).

    Args:
        x: any shape.
    """
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return (1 - t) a + t b at magnitude 1 (eq. 88).

    Args:
        a, b: of one shape.
        t: weight of b, [0, 1].
    """
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_add(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return mp_sum(a, b, t) - a.

    Args:
        a, b: of one shape.
        t: weight of b, [0, 1].
    """
    scale = math.hypot(1 - t, t)
    return torch.add(b * (t / scale), a, alpha=(1 - t) / scale - 1)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return a and b concatenated along dimension 1, at magnitude 1 (eq. 103).

    Args:
        a, b: [B, channels, ...].
        t: weight of b, [0, 1].
    """
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt(na + nb) / math.hypot(1 - t, t)
    return torch.cat([a * (scale * (1 - t) / math.sqrt(na)), b * (scale * t / math.sqrt(nb))], 1)


class MPFourier(nn.Module):
    """sqrt(2) cos(2 pi (f t + p)), f normal times bandwidth, p uniform, both fixed: t [B] -> [B, channels] (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int, bandwidth: float = 1.0):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, t: Tensor) -> Tensor:
        t = t if t.dtype == torch.float64 else t.float()
        angle = t[:, None] * self.freqs.to(t.dtype) + self.phases.to(t.dtype)
        return angle.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution, or with no kernel a linear map of [B, width], whose every output has a weight vector of length 1.

    gain: factor on the weights. The gradient is that of the normalised weights (eq. 47);
    `normalise_weights` keeps the stored ones normalised too.
    normalised: for adapters, see gen.training.adapter_layers.
    """

    normalised = True

    def __init__(self, width: int, out: int, *kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = normalise(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))
        w = (w * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        return linear(x, w) if w.ndim == 2 else conv2d(x, w, padding=w.shape[-1] // 2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def normalise_weights(net: nn.Module) -> None:
    """Rewrite the weights of every MPConv to magnitude 1, so that updates keep their relative size (eq. 66).

    Rows that have it already are left alone to the last bit, so a second call changes nothing. That is why the rewrite
    may hide from autograd, which otherwise would refuse a network that is evaluated twice before one backward pass.

    Args:
        net: changed in place.
    """
    for layer in net.modules():
        if isinstance(layer, MPConv) and layer.weight.requires_grad:  # frozen ones are those that adapters belong to
            w = layer.weight.data
            size = magnitude(w)  # [out, 1, ...]
            kept = ((size - 1).abs() <= DRIFT) | (size == 0)
            w.div_(torch.where(kept, 1.0, size).to(w.dtype))
