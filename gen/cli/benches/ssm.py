"""State spaces, linear attention and long convolutions: ours against their formulas, torch.fft, and others' kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.cli.benches.lib.ops import doubled
from gen.cli.benches.lib.peers import on_cuda
from gen.eval.bench import BenchContext, Call, Case, Inputs
from gen.kernels.dispatch import Op
from gen.kernels.linear_attention import linear_attention
from gen.kernels.long_convolution import long_convolution
from gen.kernels.s4d import s4d_kernel
from gen.kernels.selective_scan import selective_scan
from gen.kernels.ssd import ssd

__all__ = ["ssm"]

SCAN_ULPS = 1024  # that a formula in float32 may lose over a long scan or transform
LOW_PRECISION = 8.0  # times the formula's error, for kernels that multiply in less than float32 inside


def ssm(context: BenchContext) -> Iterator[Case]:
    """Yield cases of the forward pass.

    "eager" is the formula as it stands, in float32 inside; scans go token by token, like their recurrence.

    Bounds count bytes, and the products of ssd and linear attention; that exponentials take their time as well, which
    for the selective scan is twice as long, no peak of products and copies knows.

    Args:
        context: device, dtype and size.
    """
    lengths = (16,) if context.quick else (256, 1024) if context.cuda else (256,)
    for length in lengths:
        yield _selective_scan(context, length)
    for length in lengths:
        yield _ssd(context, length)
    for length in lengths:
        yield _linear_attention(context, length)
    yield _s4d_kernel(context, lengths[-1])
    for length in lengths:
        yield _long_convolution(context, length)


def _case(
    context: BenchContext,
    op: Op[..., Any, Tensor],
    shape: str,
    peers: list[Call],
    draw: Callable[[Callable[..., Tensor]], Inputs],
    sizes: tuple[float, ...],
    flops: float = 0.0,
) -> Case:
    """sizes: numbers read and written, in all."""
    return Case(
        name=f"{op.name} {shape}",
        dtype=context.dtype,
        calls=[Call("ours", lambda: op, ours=True), *peers],
        inputs=lambda seed: draw(context.normal_source(seed)),
        exact=lambda *given: op.only("reference")(*doubled(given)),
        tolerance_ulps=SCAN_ULPS,
        flops=flops,
        bytes=sum(sizes) * torch.finfo(context.dtype).bits / 8,
        graph=True,
    )


def _selective_scan(context: BenchContext, t: int) -> Case:
    b, d, n = (2, 8, 4) if context.quick else (16384 // t, 2304, 16) if context.cuda else (2, 192, 16)

    def draw(normal: Callable[..., Tensor]) -> Inputs:
        A = -torch.arange(1.0, n + 1, device=context.device).repeat(d, 1)  # as Mamba starts
        return normal(b, t, d), _positive(normal(b, t, d)), A, normal(b, t, n), normal(b, t, n)

    peers = [Call("eager", lambda: _scan_eager), Call("mamba_ssm", lambda: _mamba(context), adapt=_channels_first)]
    return _case(context, selective_scan, f"{b} x {t} x {d}, {n} states", peers, draw, (3 * b * t * d, 2 * b * t * n))


def _ssd(context: BenchContext, t: int) -> Case:
    b, h, p, n = (2, 2, 8, 4) if context.quick else (16384 // t, 24, 64, 64) if context.cuda else (2, 6, 64, 64)

    def draw(normal: Callable[..., Tensor]) -> Inputs:
        A = -torch.linspace(1, 16, h, device=context.device).to(context.dtype)
        return normal(b, t, h, p), _positive(normal(b, t, h)), A, normal(b, t, 1, n), normal(b, t, 1, n)

    peers = [
        Call("eager", lambda: _ssd_eager),
        Call("mamba_ssm", lambda: _mamba_chunks(context), error_factor=LOW_PRECISION),
        Call("fla", lambda: _fla_chunks(context), error_factor=LOW_PRECISION),
    ]
    sizes = (2 * b * t * h * p, b * t * h, 2 * b * t * n)
    shape = f"{b} x {t}, {h} heads of {p}, {n} states"
    return _case(context, ssd, shape, peers, draw, sizes, flops=4.0 * b * t * h * p * n)


def _linear_attention(context: BenchContext, t: int) -> Case:
    b, h, d = (2, 2, 8) if context.quick else (16384 // t, 16, 72) if context.cuda else (4, 6, 64)

    def draw(normal: Callable[..., Tensor]) -> Inputs:
        return normal(b, h, t, d), normal(b, h, t, d), normal(b, h, t, d)

    peers = [
        Call("eager", lambda: _linear_eager),
        Call("compiled", lambda: context.compiled(_linear_eager)),
    ]
    flops = 4.0 * b * h * t * d * d
    return _case(context, linear_attention, f"{b} x {h} x {t} x {d}", peers, draw, (4 * b * h * t * d,), flops)


def _s4d_kernel(context: BenchContext, t: int) -> Case:
    """In float32, whatever the dtype: complex numbers have no other."""
    h, n = (4, 8) if context.quick else (1152, 64) if context.cuda else (384, 64)

    def draw(normal: Callable[..., Tensor]) -> Inputs:
        real, imaginary, dt = (normal(*shape).float() for shape in ((h, n // 2), (h, n // 2), (h,)))
        A = torch.complex(
            -0.5 * torch.ones_like(real), torch.pi * torch.arange(n // 2, device=context.device) + 0 * real
        )
        return A, torch.complex(real, imaginary), 0.001 * (1 + dt.abs()), t

    peers = [Call("eager", lambda: _s4d_eager)]
    halves = 32 / torch.finfo(context.dtype).bits  # of float32 in the numbers that are counted
    sizes = (halves * h * t, halves * 2 * h * n)
    case = _case(context, s4d_kernel, f"{h} channels, {n} states, length {t}, in float32", peers, draw, sizes)
    return replace(case, dtype=torch.float32)


def _long_convolution(context: BenchContext, t: int) -> Case:
    b, h = (2, 8) if context.quick else (32768 // t, 1152) if context.cuda else (4, 384)

    def draw(normal: Callable[..., Tensor]) -> Inputs:
        decay = torch.linspace(0, -8, t, device=context.device).exp()
        return normal(b, t, h), (normal(h, t) * decay).to(context.dtype)

    peers = [Call("torch.fft", lambda: _fft)]
    case = _case(context, long_convolution, f"{b} x {t} x {h}", peers, draw, (2 * b * t * h, h * t))
    return replace(case, baseline="torch.fft")


def _positive(x: Tensor) -> Tensor:
    return 0.1 * torch.nn.functional.softplus(x)


def _scan_eager(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    wide = [v.float() for v in (u, delta, A, B, C)]
    u_, delta_, A_, B_, C_ = wide
    h, outs = u_.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        h = (delta_[:, t, :, None] * A_).exp() * h + (delta_[:, t] * u_[:, t])[..., None] * B_[:, t, None]
        outs.append((h * C_[:, t, None]).sum(-1))
    return torch.stack(outs, 1).to(u.dtype)


def _ssd_eager(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    x_, delta_, A_ = x.float(), delta.float(), A.float()
    B_, C_ = (v.float().repeat_interleave(x.shape[2] // v.shape[2], 2) for v in (B, C))
    h, outs = x_.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3]), []
    for t in range(x.shape[1]):
        kept = (delta_[:, t] * A_).exp()[..., None, None]
        h = kept * h + (delta_[:, t, :, None] * B_[:, t])[..., None] * x_[:, t, :, None]
        outs.append((C_[:, t, :, None] @ h).squeeze(2))
    return torch.stack(outs, 1).to(x.dtype)


def _linear_eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.softmax(-2).mT @ v)


def _s4d_eager(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    step = dt[:, None] * A
    position = torch.arange(length, device=A.device)
    return 2 * ((C * torch.expm1(step) / A)[..., None] * (step[..., None] * position).exp()).sum(1).real


def _fft(u: Tensor, K: Tensor) -> Tensor:
    n = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u.float(), n=n, dim=1) * torch.fft.rfft(K.float(), n=n).mT
    return torch.fft.irfft(spectrum, n=n, dim=1)[:, : u.shape[1]].to(u.dtype)


def _channels_first(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    return *(v.mT.contiguous() for v in (u, delta)), A, *(v.mT.contiguous() for v in (B, C))


def _mamba(context: BenchContext) -> Callable[..., Tensor]:
    scan = on_cuda("mamba_ssm", "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", context)
    return lambda *given: scan(*given).mT


def _mamba_chunks(context: BenchContext) -> Callable[..., Tensor]:
    scan = on_cuda("mamba_ssm", "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined", context)
    return lambda x, delta, A, B, C: scan(x, delta, A.float(), B, C, chunk_size=256)


def _fla_chunks(context: BenchContext) -> Callable[..., Tensor]:
    """Simple gated linear attention with queries C, keys delta B and values x: the same recurrence."""
    chunks = on_cuda("flash-linear-attention", "fla.ops.simple_gla", "chunk_simple_gla", context)

    def scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        q, keys = (v.expand(-1, -1, x.shape[2], -1) for v in (C, B))
        return chunks(q.contiguous(), delta[..., None] * keys, x, delta.float() * A.float(), scale=1.0)[0]

    return scan
