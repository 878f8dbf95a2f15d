"""One evaluation of a DiT in eight bits, beside the engines that round less; the error of each is its drift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from gen.cli.benches.lib.dit import QUANTISED, Nets, forward_flops, specification
from gen.eval.bench import BenchContext, Call, Case

__all__ = ["quantised"]

EIGHT_BITS = 1e6  # times the error of float32: rounding to eight bits is no mistake


def quantised(context: BenchContext) -> Iterator[Case]:
    """Yield cases of DiT-S/2 on a CPU, XL/2 on a GPU, of latents of 32 x 32, which are 256 tokens.

    The errors are those of random weights; of a trained network `gen sample --engine int8` names them.

    Args:
        context: device, dtype and size.
    """
    size, batches = ("XL/2", (1, 8)) if context.cuda else ("S/2", (1, 4))
    for batch in batches[:1] if context.quick else batches:
        yield _case(context, size, batch)


def _case(context: BenchContext, size: str, batch: int) -> Case:
    spec = specification(size, context)
    nets = Nets(spec, context)
    calls = [Call("plain", lambda: _call(nets.plain), ours=True)]
    calls += [Call(name, partial(_engine, nets, name), ours=True) for name in ("packed", "compiled")]
    calls += [Call(name, partial(_engine, nets, name), ours=True, error_factor=EIGHT_BITS) for name in QUANTISED]
    return Case(
        name=f"DiT-{size}{', tiny' if context.quick else ''}, batch {batch}",
        dtype=context.dtype,
        calls=calls,
        inputs=lambda seed: nets.draw(batch, seed),
        exact=lambda x, t, y: nets.double()(x.double(), t.double(), {"y": y}),
        baseline="plain",
        tolerance_ulps=1024,
        flops=batch * forward_flops(spec),
        bytes=nets.weight_bytes(),
        rates={"images/s": batch},
    )


def _engine(nets: Nets, name: str) -> Callable[..., Tensor]:
    return _call(nets.engine(name))


def _call(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, t, y: net(x, t, {"y": y})
