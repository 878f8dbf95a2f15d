"""Attention over packed q, k and v: ours against PyTorch's kernels, FlexAttention, xformers and the formula itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gen.cli.benches.lib.ops import only, with_gradients
from gen.eval.bench import BenchContext, Call, Case, Unavailable
from gen.kernels.attention import Bidirectional, BlockDiffusion, MaskRule, packed_attention

__all__ = ["attention"]

Attend = Callable[[Tensor], Tensor]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
CUDA_ONLY = ("efficient", "cuDNN")


def attention(context: BenchContext) -> Iterator[Case]:
    """Yield cases of heads of 64, 72 (DiT-XL's) and 128, bidirectional or under block diffusion's rule.

    Forward alone, and with the gradient of q, k and v. FlexAttention takes part where there is a rule: it is what it is
    for, and compiling it takes longer than all the rest.

    Args:
        context: device, dtype and size.
    """
    if context.quick:
        sizes, masks = [(8, 32, 2, 2)], [(16, 8, 8, 2, 2)]
    elif context.cuda:
        sizes = [(d, n, 16384 // n, 16) for d in (64, 72, 128) for n in (256, 1024, 4096)]
        masks = [(length, 32, 64, 8192 // length, 16) for length in (1024, 4096)]
    else:
        sizes, masks = [*((d, 256, 2, 4) for d in (64, 72, 128)), (72, 1024, 1, 4)], [(256, 16, 64, 1, 4)]
    for d, n, batch, heads in sizes:
        for grad in (False, True) if n <= 256 or context.cuda else (False,):
            yield _case(context, Bidirectional(), d, n, batch, heads, grad)
    for length, block, d, batch, heads in masks:
        for grad in (False, True) if context.cuda else (False,):
            yield _case(context, BlockDiffusion(length, block), d, 2 * length, batch, heads, grad)


def _case(context: BenchContext, rule: MaskRule, d: int, n: int, batch: int, heads: int, grad: bool) -> Case:
    whole = with_gradients if grad else _alone
    calls = [
        Call("ours", lambda: whole(partial(packed_attention, rule=rule)), ours=True),
        Call("ours triton", lambda: whole(_backend("triton", rule)), ours=True),
        Call("eager", lambda: whole(_eager(rule, n, context))),
        Call("sdpa default", lambda: whole(_sdpa(rule, n, context))),
    ]
    if isinstance(rule, Bidirectional):
        forced = partial(_sdpa, rule, n, context)
        calls += [Call(f"sdpa {k} forced", partial(lambda k: whole(forced(k)), k)) for k in KERNELS]
        calls += [Call("xformers", lambda: whole(_backend("xformers", rule)))]
    else:
        calls += [Call("flex compiled", lambda: whole(_flex(rule, context)))]

    def inputs(seed: int) -> tuple[Tensor, ...]:
        normal = context.normal_source(seed)
        qkv = normal(batch, n, 3, heads, d)
        return (qkv.requires_grad_(), normal(batch, n, heads, d)) if grad else (qkv,)

    def exact(qkv: Tensor, *up: Tensor) -> Any:
        some = _corners(qkv.detach(), 3).double()
        return whole(_backend("reference", rule))(some.requires_grad_(grad), *(_corners(u, 2).double() for u in up))

    def view(out: Any) -> Any:
        return (_corners(out[0], 2), _corners(out[1], 3)) if grad else _corners(out, 2)

    unit = batch * n * heads * d * torch.finfo(context.dtype).bits // 8  # bytes of q
    named = f"block diffusion by {rule.block}, " if isinstance(rule, BlockDiffusion) else ""
    return Case(
        name=f"{named}d {d}, N {n}, {batch} x {heads} heads, forward{' and backward' if grad else ''}",
        dtype=context.dtype,
        calls=calls,
        inputs=inputs,
        exact=exact,
        view=view,
        flops=_share(rule) * (3.5 if grad else 1) * 4 * n * n * d * heads * batch,  # backward has 5 products, forward 2
        bytes=unit * (12 if grad else 4),
        grad=grad,
        graph=True,
    )


def _alone(attend: Attend) -> Attend:
    return attend


def _corners(x: Tensor, head: int) -> Tensor:
    """The first and the last of the batch, and of them the first and the last head: what float64 has room for."""
    ends = torch.tensor([0, -1], device=x.device)
    return x[ends % len(x)].index_select(head, ends % x.shape[head])


def _backend(name: str, rule: MaskRule) -> Attend:
    """One of our op's backends, some of which are other people's kernels."""
    return only(packed_attention, name, rule=rule)


def _mask(rule: MaskRule, n: int, context: BenchContext) -> Tensor | None:
    """bool [N, N], True where one may look; None where all may."""
    position = torch.arange(n, device=context.device)
    return None if isinstance(rule, Bidirectional) else rule.allowed(position[:, None], position)


def _eager(rule: MaskRule, n: int, context: BenchContext) -> Attend:
    """The formula, operation by operation."""
    mask = _mask(rule, n, context)

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        score = qkv.shape[-1] ** -0.5 * (q @ k.mT)
        score = score if mask is None else score.masked_fill(~mask, -torch.inf)
        return (score.softmax(-1) @ v).transpose(1, 2)

    return attend


def _sdpa(rule: MaskRule, n: int, context: BenchContext, kernel: str | None = None) -> Attend:
    """PyTorch's, with the kernel it picks or the one that is named; a rule is a mask of N x N to it."""
    if kernel in CUDA_ONLY and not context.cuda:
        raise Unavailable(f"PyTorch's {kernel} attention is for CUDA, and this is {context.device.type}")
    mask = _mask(rule, n, context)

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    def forced(qkv: Tensor) -> Tensor:
        with sdpa_kernel(KERNELS[kernel or ""]):
            return attend(qkv)

    return attend if kernel is None else forced


def _flex(rule: MaskRule, context: BenchContext) -> Attend:
    """PyTorch's FlexAttention, compiled, with a block mask."""
    if (reason := context.compile_obstacle()) is not None:
        raise Unavailable(reason)
    return _backend("flex", rule)


def _share(rule: MaskRule) -> float:
    """How many of the N x N pairs the rule allows."""
    if not isinstance(rule, BlockDiffusion):
        return 1.0
    return (rule.length**2 + rule.length * rule.block) / (2 * rule.length) ** 2
