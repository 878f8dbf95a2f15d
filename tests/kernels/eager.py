"""The ops as a user would write them in PyTorch, in the precision of what is given: the yardstick of errors."""

from __future__ import annotations

import torch


def packed_attention(qkv, rule, scale=None, q_gain=None, k_gain=None, eps=1e-6, cos=None, sin=None, pairs="adjacent"):
    q, k, v = qkv.unbind(2)
    q, k = norm_rope(q, q_gain, eps, cos, sin, pairs), norm_rope(k, k_gain, eps, cos, sin, pairs)
    return attention(q, k, v, rule, scale)


def attention(q, k, v, rule, scale=None, attn_mask=None, start_pos=0, documents=None):
    group = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(t.transpose(1, 2).repeat_interleave(group, 1) for t in (k, v))
    position, key = start_pos + torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
    allowed = rule.allowed(position[:, None], key)
    allowed = allowed if attn_mask is None else allowed & attn_mask[:, None]
    if documents is not None:
        allowed = allowed & (documents[:, None, position, None] == documents[:, None, None, key])
    score = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.mT)
    score = score.masked_fill(~allowed, -torch.inf)
    return (score.softmax(-1) @ v).transpose(1, 2)


def norm_rope(x, gain=None, eps=1e-6, cos=None, sin=None, pairs="adjacent"):
    if gain is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain
    if cos is None:
        return x
    a, b = (x[..., ::2], x[..., 1::2]) if pairs == "adjacent" else x.chunk(2, -1)
    across = torch.stack([-b, a], -1).flatten(-2) if pairs == "adjacent" else torch.cat([-b, a], -1)
    return (x * cos[..., None, :] + across * sin[..., None, :]).to(x.dtype)


def modulated_norm(x, scale, shift, gain=None, kind="layer", eps=1e-6):
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (normed if gain is None else normed * gain) * (1 + scale) + shift


def rounded_to(dtype):
    """A decorator: outputs in a dtype."""

    def decorate(op):
        def rounded(*inputs):
            out = op(*inputs)
            return out.to(dtype) if isinstance(out, torch.Tensor) else tuple(v.to(dtype) for v in out)

        return rounded

    return decorate


def gated_residual(x, y, gate):
    return x + gate * y


def gated_residual_norm(x, y, gate, scale, shift, gain=None, kind="layer", eps=1e-6):
    out = x + gate * y
    return out, modulated_norm(out, scale, shift, gain, kind, eps)


def token_statistics(logits, mask_token_id=None):
    x = (
        logits
        if mask_token_id is None
        else logits.index_fill(-1, torch.tensor(mask_token_id, device=logits.device), -torch.inf)
    )
    x = x.float() if logits.dtype != torch.float64 else x
    top, index = x.sort(dim=-1, descending=True, stable=True)
    logp = x.log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)
    return index[..., 0], index[..., 1], top[..., 0], top[..., 1], x.logsumexp(-1), entropy


def swiglu(ab):
    a, b = ab.chunk(2, -1)
    return a * a.sigmoid() * b


def gelu_tanh(x, bias=None):
    h = x if bias is None else x + bias
    return 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))


def rational(x, numerator, denominator):
    wide = x.unflatten(-1, (len(denominator), -1))
    top = sum(a[:, None] * wide**i for i, a in enumerate(numerator.unbind(1)))
    low = sum(b.abs()[:, None] * wide.abs() ** j for j, b in enumerate(denominator.unbind(1), 1))
    return (top / (1 + low)).flatten(-2)


def linear_attention(q, k, v):
    return q @ (k.softmax(-2).mT @ v)


def long_convolution(u, K):
    n, kind = 2 * u.shape[1], torch.promote_types(u.dtype, torch.float32)
    y = torch.fft.irfft(torch.fft.rfft(u.to(kind), n=n, dim=1) * torch.fft.rfft(K.to(kind), n=n).mT, n=n, dim=1)
    return y[:, : u.shape[1]].to(u.dtype)


def short_convolution(u, weight, bias, order=None, reverse=False):
    visits = torch.arange(u.shape[1], device=u.device) if order is None else order
    visits = visits.flip(0) if reverse else visits
    wide = torch.nn.functional.pad(u[:, visits].mT, (weight.shape[1] - 1, 0))
    y = torch.nn.functional.conv1d(wide, weight[:, None], bias, groups=len(weight)).mT
    return y[:, visits.argsort()]


def s4d_kernel(A, C, dt, length):
    step = dt[:, None] * A
    place = torch.arange(length, device=A.device)
    return 2 * ((C * torch.expm1(step) / A)[..., None] * (step[..., None] * place).exp()).sum(-2).real


def linear_scan(a, b, start=None, reverse=False):
    h, outs = torch.zeros_like(b[:, 0]) if start is None else start, []
    for t in range(b.shape[1])[:: -1 if reverse else 1]:
        link = a[:, t] if not reverse else a[:, (t + 1) % b.shape[1]]
        h = link * h + b[:, t]
        outs.append(h)
    return torch.stack(outs[::-1] if reverse else outs, 1)


def selective_scan(u, delta, A, B, C, order=None, reverse=False):
    h, outs = u.new_zeros(u.shape[0], *A.shape), {}
    visits = range(u.shape[1]) if order is None else order.tolist()
    for t in visits[::-1] if reverse else visits:
        h = (delta[:, t, :, None] * A).exp() * h + delta[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        outs[t] = (h * C[:, t, None]).sum(-1)
    return torch.stack([outs[t] for t in range(u.shape[1])], 1).to(u.dtype)


def ssd(x, delta, A, B, C):
    B, C = (v.repeat_interleave(x.shape[2] // v.shape[2], 2) for v in (B, C))
    h, outs = x.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3]), []
    for t in range(x.shape[1]):
        h = (delta[:, t] * A).exp()[..., None, None] * h + (delta[:, t, :, None] * B[:, t])[..., None] * x[
            :, t, :, None
        ]
        outs.append((C[:, t, :, None] @ h).squeeze(2))
    return torch.stack(outs, 1)


def gated_linear_attention(q, k, v, g):
    state, outs = v.new_zeros(v.shape[0], v.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        state = g[:, t, :, :, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append((q[:, t, :, None] * q.shape[3] ** -0.5 @ state).squeeze(2))
    return torch.stack(outs, 1)
