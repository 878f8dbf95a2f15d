"""Every op as its formula stands: slow, in float64 inside, for any dtype, differentiable any number of times.

These are what the tests hold all other backends to, and the backend of last resort. Results have the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.rules import Rule

__all__ = [
    "attention",
    "gated_residual",
    "gated_residual_norm",
    "gelu_tanh",
    "linear_attention",
    "long_convolution",
    "modulated_norm",
    "rational",
    "s4d_kernel",
    "selective_scan",
    "ssd",
    "swiglu",
    "token_statistics",
]


def attention(qkv: Tensor, rule: Rule, scale: float) -> Tensor:
    """softmax(scale q k^T, over the keys that the rule allows) v; a query that sees nothing gets 0."""
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)  # each [B, H, N, d]
    place = torch.arange(q.shape[2], device=q.device)
    allowed = rule.allowed(place[:, None], place)  # [N, N]
    score = (scale * q @ k.mT).masked_fill(~allowed, -torch.inf)
    top = score.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    weight = (score - top).exp()
    total = weight.sum(-1, keepdim=True)
    out: Tensor = (weight / total.where(total > 0, 1)) @ v
    return out.transpose(1, 2).to(qkv.dtype)  # [B, N, H, d]


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y."""
    return (x.double() + gate.double() * y.double()).to(x.dtype)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float) -> Tensor:
    """norm(x) (1 + scale) + shift, the norm being (x - mean) / sqrt(variance + eps) gain, or x / rms(x) gain."""
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True) if kind == "layer" else wide
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if gain is not None:
        normed = normed * gain.double()
    return (normed * (1 + scale.double()) + shift.double()).to(x.dtype)


def gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    """x + gate y, rounded to the dtype as what is passed on, and its modulated norm."""
    out = gated_residual(x, y, gate)
    return out, modulated_norm(out, scale, shift, gain, kind, eps)


def token_statistics(logits: Tensor, mask_token: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """best, second, top, next, lse, entropy; the last four in float32, or float64 if the logits are."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    x = logits.double()
    if mask_token is not None:
        x = x.index_fill(-1, torch.tensor(mask_token, device=x.device), -torch.inf)
    best = x.argmax(-1, keepdim=True)  # the lowest index among equals, as is promised
    second = x.detach().scatter(-1, best, -torch.inf).argmax(-1, keepdim=True)
    top, after = x.gather(-1, best), x.gather(-1, second)
    best, second = best.where(top > -torch.inf, 0), second.where(after > -torch.inf, 0)
    lse = x.logsumexp(-1)
    logp = x.log_softmax(-1)
    possible = x > -torch.inf
    entropy = -(logp.where(possible, 0).exp() * logp.where(possible, 0)).where(possible, 0).sum(-1)
    numbers = [v.to(kind) for v in (top[..., 0], after[..., 0], lse, entropy)]
    return best[..., 0], second[..., 0], numbers[0], numbers[1], numbers[2], numbers[3]


def swiglu(ab: Tensor) -> Tensor:
    """a sigmoid(a) b, of the halves of the last dimension."""
    a, b = ab.double().chunk(2, -1)
    out: Tensor = (a * a.sigmoid() * b).to(ab.dtype)
    return out


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    """h sigmoid(2 sqrt(2 / pi) (h + 0.044715 h^3)) with h = x + bias: half of h times 1 + tanh of half of that."""
    h = x.double() if bias is None else x.double() + bias.double()
    out: Tensor = h * (2 * (2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)).sigmoid()
    return out.to(x.dtype)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """sum_i a_i x^i / (1 + sum_j |b_j| |x|^j) of each group of channels."""
    groups = len(denominator)
    wide = x.double().reshape(*x.shape[:-1], groups, -1)  # [..., G, D / G]
    top, low = torch.zeros_like(wide), torch.ones_like(wide)
    for i, a in enumerate(numerator.double().unbind(1)):
        top = top + a[:, None] * wide**i
    for j, b in enumerate(denominator.double().unbind(1), 1):
        low = low + b.abs()[:, None] * wide.abs() ** j
    return (top / low).flatten(-2).to(x.dtype)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q S, where S sums v_t over the tokens with weights softmax_t(k), channel by channel."""
    share = k.double().softmax(-2)
    return (q.double() @ (share.mT @ v.double())).to(q.dtype)


def long_convolution(u: Tensor, K: Tensor) -> Tensor:
    """y_t = sum over s of K_s u_(t-s), one s after the other."""
    length, wide, y = u.shape[1], u.double(), torch.zeros_like(u, dtype=torch.float64)
    for s, tap in enumerate(K.double().unbind(1)):
        by = s if s < length else s - 2 * length  # the second half looks ahead; the place between is nobody's
        if by != -length:
            y = y + tap * pad(wide, (0, 0, by, -by))
    return y.to(u.dtype)


def s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n)."""
    wide = torch.complex128
    step = dt.double()[:, None] * A.to(wide)  # [H, N / 2]
    drive = C.to(wide) * torch.expm1(step) / A.to(wide)
    place = torch.arange(length, device=A.device, dtype=torch.float64)
    return (2 * (drive[..., None] * (step[..., None] * place).exp()).sum(1).real).to(dt.dtype)


def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The states h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T of every head, and y_t = C_t h_t, token by token."""
    x_, delta_, A_ = x.double(), delta.double(), A.double()
    B_, C_ = (v.double().repeat_interleave(x.shape[2] // v.shape[2], 2) for v in (B, C))  # [b, T, H, N]
    h = x_.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    outs = []
    for t in range(x.shape[1]):
        kept = (delta_[:, t] * A_).exp()[..., None, None]
        h = kept * h + (delta_[:, t, :, None] * B_[:, t])[..., None] * x_[:, t, :, None]
        outs.append((C_[:, t, :, None] @ h).squeeze(2))  # [b, H, P]
    return torch.stack(outs, 1).to(x.dtype)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t . h_t of every channel, token by token."""
    u_, delta_, A_, B_, C_ = (v.double() for v in (u, delta, A, B, C))
    h = u_.new_zeros(u.shape[0], *A.shape)  # [b, D, N]
    outs = []
    for t in range(u.shape[1]):
        h = (delta_[:, t, :, None] * A_).exp() * h + (delta_[:, t] * u_[:, t])[..., None] * B_[:, t, None]
        outs.append((h * C_[:, t, None]).sum(-1))
    return torch.stack(outs, 1).to(u.dtype)
