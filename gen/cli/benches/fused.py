"""Operations between the products of a network, where memory is the limit: norms, gates, activations, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu
from torch.nn.functional import linear as product

from gen.cli.benches.lib.ops import doubled, only, with_gradients
from gen.eval.bench import BenchContext, Call, Case, Function, Unavailable
from gen.kernels.activation import gelu_tanh, rational, swiglu
from gen.kernels.dispatch import Op
from gen.kernels.linear import PackedWeight, linear, pack, unpackable
from gen.kernels.norm import gated_residual, gated_residual_norm, modulated_norm
from gen.kernels.statistics import token_statistics

__all__ = ["fused"]

GROUPS = 8  # of a rational function's coefficients, as KAT has them


@dataclass(frozen=True)
class Work:
    """An op, the same as a user writes it, its arguments, and how often each number of the widest of these is moved.

    forward, both: in units of x [B, N, D], whatever is read or written once; with the gradients, if they are measured.
    """

    op: Op[..., Any, Any]
    eager: Function
    draw: Callable[..., tuple[Tensor, ...]]
    wide: float
    forward: float
    both: float = 0.0


def fused(context: BenchContext) -> Iterator[Case]:
    """Yield the ops of a DiT's block and of a text model's head, in shapes of DiT-S/2 on a CPU, XL/2 on a GPU.

    Forward, and on a GPU the gradients too where a block trains through them. Peers are PyTorch's own operations one by
    one, and the same compiled.

    Args:
        context: device, dtype and size.
    """
    b, n, d = (2, 8, 32) if context.quick else (64, 256, 1152) if context.cuda else (4, 256, 384)
    for work in WORKS:
        yield _case(context, work, b, n, d, grad=False)
        if work.both and (context.cuda or context.quick):
            yield _case(context, work, b, n, d, grad=True)
    yield _statistics(context)
    yield _linear(context)


def _case(context: BenchContext, work: Work, b: int, n: int, d: int, grad: bool) -> Case:
    whole = with_gradients if grad else (lambda f: f)
    results = 2 if work.op is gated_residual_norm else 1

    def inputs(seed: int) -> tuple[Tensor, ...]:
        normal = context.normal_source(seed)
        made = work.draw(normal, b, n, d)
        if not grad:
            return made
        size = d if work.op is not gelu_tanh else 4 * d
        return (*(v.requires_grad_() for v in made), *(normal(b, n, size) for _ in range(results)))

    shape = f"{b} x {n} x {int(work.wide * d)}"
    return Case(
        name=f"{work.op.name} {shape}, forward{' and backward' if grad else ''}",
        dtype=context.dtype,
        calls=_calls(context, work.op, work.eager, whole),
        inputs=inputs,
        exact=lambda *given: whole(work.op.only("reference"))(*doubled(given)),
        bytes=(work.both if grad else work.forward) * b * n * d * torch.finfo(context.dtype).bits / 8,
        grad=grad,
        graph=True,
    )


def _calls(context: BenchContext, op: Op[..., Any, Any], eager: Function, whole: Callable[[Any], Any]) -> list[Call]:
    return [
        Call("ours", lambda: whole(op), ours=True),
        Call("eager", lambda: whole(eager)),
        Call("compiled", lambda: whole(context.compiled(eager))),
    ]


def _statistics(context: BenchContext) -> Case:
    """The two likeliest tokens of each row, in a small vocabulary on a CPU and in LLaDA's on a GPU."""
    rows, vocab = (4, 64) if context.quick else (2048, 126464) if context.cuda else (256, 32768)

    def exact(logits: Tensor) -> tuple[Tensor, ...]:
        return _numbers(logits, *token_statistics.only("reference")(logits.double()))

    return Case(
        name=f"token_statistics {rows} x {vocab}, forward",
        dtype=context.dtype,
        calls=_calls(context, token_statistics, _two_best, lambda f: lambda logits: (logits, *f(logits))),
        inputs=lambda seed: (context.normal_source(seed)(rows, vocab),),
        exact=exact,
        view=lambda out: _numbers(*out),
        bytes=rows * vocab * torch.finfo(context.dtype).bits / 8,
        graph=True,
    )


def _linear(context: BenchContext) -> Case:
    """An MLP's first product with its GELU, by weights that do not change."""
    rows, size, out = (8, 32, 64) if context.quick else (16384, 1152, 4608) if context.cuda else (256, 384, 1536)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        normal = context.normal_source(seed)
        return normal(1, rows, size), normal(out, size) / size**0.5, normal(out)

    def packed() -> Callable[..., Tensor]:
        held: dict[int, PackedWeight] = {}

        def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if id(weight) not in held:  # once for each input set, and not timed: the first calls warm up
                if (reason := unpackable(weight)) is not None:
                    raise Unavailable(reason)
                held[id(weight)] = pack(weight)
            return linear(x, held[id(weight)], bias, "gelu_tanh")

        return call

    return Case(
        name=f"linear and gelu {rows} x {size} -> {out}, forward",
        dtype=context.dtype,
        calls=[
            Call("ours packed", packed, ours=True),
            Call("ours", lambda: lambda x, weight, bias: linear(x, weight, bias, "gelu_tanh"), ours=True),
            Call("eager", lambda: _linear_gelu),
            Call("compiled", lambda: context.compiled(_linear_gelu)),
        ],
        inputs=inputs,
        exact=lambda *given: only(linear, "reference", activation="gelu_tanh")(*doubled(given)),
        flops=2 * rows * size * out,
        bytes=(rows * (size + out) + size * out) * torch.finfo(context.dtype).bits / 8,
        graph=True,
    )


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gelu(product(x, weight, bias), approximate="tanh")


def _numbers(logits: Tensor, best: Tensor, second: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
    """Where logits are equal any of the tokens will do, so it is their logits that are compared."""
    return tuple(logits.gather(-1, i[..., None])[..., 0].float() for i in (best, second)) + numbers


def _two_best(logits: Tensor) -> tuple[Tensor, ...]:
    wide = logits.float()
    top, index = wide.topk(2, -1)
    logp = wide.log_softmax(-1)
    return *index.unbind(-1), *top.unbind(-1), wide.logsumexp(-1), -(logp.exp() * logp).sum(-1)


def _modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate * y


def _gated_residual_norm(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    out = x + gate * y
    return out, _modulated_norm(out, scale, shift)


def _swiglu(ab: Tensor) -> Tensor:
    a, b = ab.chunk(2, -1)
    return silu(a) * b


def _gelu_tanh(x: Tensor, bias: Tensor) -> Tensor:
    return gelu(x + bias, approximate="tanh")


def _rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    wide = x.reshape(*x.shape[:-1], len(denominator), -1)
    top, low = torch.zeros_like(wide), torch.ones_like(wide)
    for i, a in enumerate(numerator.unbind(1)):
        top = top + a[:, None] * wide**i
    for j, b in enumerate(denominator.unbind(1), 1):
        low = low + b.abs()[:, None] * wide.abs() ** j
    return (top / low).flatten(-2)


Normal = Callable[..., Tensor]


def _modulated(normal: Normal, b: int, n: int, d: int) -> tuple[Tensor, ...]:
    return normal(b, n, d), normal(b, 1, d), normal(b, 1, d)


def _gated(normal: Normal, b: int, n: int, d: int) -> tuple[Tensor, ...]:
    return normal(b, n, d), normal(b, n, d), normal(b, 1, d)


def _gated_modulated(normal: Normal, b: int, n: int, d: int) -> tuple[Tensor, ...]:
    return *_gated(normal, b, n, d), normal(b, 1, d), normal(b, 1, d)


# Units of [B, N, D]. Forward reads every argument and writes every result once; backward reads the arguments that it
# needs and the results' gradients, and writes the arguments' own.
WORKS = (
    Work(modulated_norm, _modulated_norm, _modulated, 1, forward=2, both=2 + 3),
    Work(gated_residual_norm, _gated_residual_norm, _gated_modulated, 1, forward=4, both=4 + 6),
    Work(gated_residual, _gated_residual, _gated, 1, forward=3),
    Work(swiglu, _swiglu, lambda normal, b, n, d: (normal(b, n, 2 * 4 * d),), 8, forward=8 + 4),
    Work(
        gelu_tanh, _gelu_tanh, lambda normal, b, n, d: (normal(b, n, 4 * d), normal(4 * d)), 4, forward=8, both=8 + 12
    ),
    Work(
        rational,
        _rational,
        lambda normal, b, n, d: (normal(b, n, 4 * d), normal(1, 6), normal(GROUPS, 4)),
        4,
        forward=8,
    ),
)
