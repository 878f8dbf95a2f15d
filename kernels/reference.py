"""Every op as its formula stands: slow, in float64 inside, for any dtype, differentiable any number of times.

These are what the tests hold all other backends to, and the backend of last resort. Results have the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.backends.linear_onednn import Packed
from gen.kernels.rules import Rule

__all__ = [
    "attention",
    "attention_qkv",
    "gated_residual",
    "gated_residual_norm",
    "gelu_tanh",
    "linear",
    "linear_attention",
    "linear_scan",
    "long_convolution",
    "modulated_norm",
    "norm_rope",
    "rational",
    "s4d_kernel",
    "selective_scan",
    "short_convolution",
    "ssd",
    "swiglu",
    "token_statistics",
]


def attention(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: str,
) -> Tensor:
    """attention_qkv of the three parts, q and k after norm_rope, rounded once."""
    q, k, v = qkv.double().unbind(2)
    q, k = norm_rope(q, q_gain, eps, cos, sin, pairs), norm_rope(k, k_gain, eps, cos, sin, pairs)
    return attention_qkv(q, k, v, rule, scale, None, 0).to(qkv.dtype)


def attention_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    """softmax(scale q k^T, over the keys that rule and seen allow) v; a query that sees nothing gets 0."""
    group = q.shape[2] // k.shape[2]
    q_, k_, v_ = (t.double().transpose(1, 2) for t in (q, k, v))  # each [B, heads, places, d]
    k_, v_ = k_.repeat_interleave(group, 1), v_.repeat_interleave(group, 1)
    place = torch.arange(first, first + q.shape[1], device=q.device)
    allowed = rule.allowed(place[:, None], torch.arange(k.shape[1], device=q.device))  # [Nq, Nk]
    if seen is not None:
        allowed = allowed & seen[:, None]  # [B or 1, 1, Nq, Nk]
    score = (scale * q_ @ k_.mT).masked_fill(~allowed, -torch.inf)
    top = score.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    weight = (score - top).exp()
    total = weight.sum(-1, keepdim=True)
    out: Tensor = (weight / total.where(total > 0, 1)) @ v_
    return out.transpose(1, 2).to(q.dtype)  # [B, Nq, H, d]


def norm_rope(x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, pairs: str) -> Tensor:
    """x / rms(x) gain, and each pair of channels (a, b) turned to (a cos - b sin, b cos + a sin)."""
    y = x.double()
    if gain is not None:
        y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt() * gain.double()
    if cos is not None and sin is not None:
        half = x.shape[-1] // 2
        along, size = (-1, (half, 2)) if pairs == "adjacent" else (-2, (2, half))
        a, b = y.reshape(*y.shape[:-1], *size).unbind(along)
        across = torch.stack([-b, a], along).flatten(-2)
        y = y * cos.double()[..., None, :] + across * sin.double()[..., None, :]
    return y.to(x.dtype)


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
    return (a * a.sigmoid() * b).to(ab.dtype)


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


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(x weight^T + bias)."""
    dense = weight.dense() if isinstance(weight, Packed) else weight
    out = x.double() @ dense.double().mT + (0 if bias is None else bias.double())
    if activation == "gelu":
        out = out * torch.erfc(-out / math.sqrt(2)) / 2
    elif activation is not None:  # gelu's tanh form is x sigmoid(2 sqrt(2 / pi) (x + .044715 x^3))
        inner = out if activation == "silu" else math.sqrt(8 / math.pi) * (out + 0.044715 * out**3)
        out = out * torch.sigmoid(inner)
    return out.to(x.dtype)


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


def short_convolution(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    """bias + sum over k of weight_k u_(the token visited taps - 1 - k places before), one tap after the other."""
    visits = torch.arange(u.shape[1], device=u.device) if order is None else order
    visits = visits.flip(0) if reverse else visits
    before = pad(u.double()[:, visits], (0, 0, weight.shape[1] - 1, 0))
    y = torch.zeros_like(u, dtype=torch.float64) + bias.double()
    for k, tap in enumerate(weight.double().unbind(1)):
        y = y + tap * before[:, k : k + u.shape[1]]
    return y[:, visits.argsort()].to(torch.promote_types(u.dtype, weight.dtype))


def s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    """2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n)."""
    wide = torch.complex128
    step = dt.double()[:, None] * A.to(wide)  # [H, N / 2]
    drive = C.to(wide) * torch.expm1(step) / A.to(wide)
    place = torch.arange(length, device=A.device, dtype=torch.float64)
    return (2 * (drive[..., None] * (step[..., None] * place).exp()).sum(-2).real).to(dt.dtype)


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


def linear_scan(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    """h_t = a_t h_(t-1) + b_t, one step at a time; from the last, h_t = a_(t+1) h_(t+1) + b_t."""
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
    a_, b_ = a.to(kind), b.to(kind)
    if reverse:
        a_ = a_.roll(-1, 1)  # a_(t+1) at t, and a_0, which nothing comes to, at the last
    h = torch.zeros_like(b_[:, 0]) if start is None else start.to(kind)
    states = []
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = a_[:, t] * h + b_[:, t]
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1).to(b.dtype)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> Tensor:
    """h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t and y_t = C_t . h_t of every channel, token by token."""
    u_, delta_, A_, B_, C_ = (v.double() for v in (u, delta, A, B, C))
    h = u_.new_zeros(u.shape[0], *A.shape)  # [b, D, N]
    visits = torch.arange(u.shape[1], device=u.device) if order is None else order
    outs = []
    for t in (visits.flip(0) if reverse else visits)[:, None]:  # [1] each: a token that no Python number holds
        decay = (delta_[:, t, :, None] * A_).exp()[:, 0]
        h = decay * h + ((delta_[:, t] * u_[:, t])[..., None] * B_[:, t, None])[:, 0]
        outs.append((h * C_[:, t]).sum(-1))
    back = visits.flip(0).argsort() if reverse else visits.argsort()
    return torch.stack(outs, 1)[:, back].to(u.dtype)
