"""One evaluation of a DiT: ours as it is and by every engine, and diffusers' model with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from gen.cli.benches.lib.dit import Nets, compiled, forward_flops, specification, under_cudnn
from gen.eval.bench import BenchContext, Call, Case, Function

__all__ = ["forward"]

ONCE = "compiled for the smallest batch only, on a GPU for the largest too: every shape takes its minute"
ROWS = 8  # of the batch at a time in float64
LARGEST = "compiled with PyTorch's own choice of attention only, but for the largest batch"


def forward(context: BenchContext) -> Iterator[Case]:
    """Yield cases of DiT-S/2 and B/2 on a CPU, XL/2 on a GPU, of latents of 32 x 32, which are 256 tokens.

    diffusers' model embeds time and class in every block anew; that is its own, and not counted as work. Its compiled
    form is torch.compile's of the whole model, with CUDA graphs on a GPU and frozen weights on a CPU.

    Args:
        context: device, dtype and size.
    """
    sizes = ("S/2",) if context.quick else ("XL/2",) if context.cuda else ("S/2", "B/2")
    batches = (2,) if context.quick else (1, 8, 64) if context.cuda else (1, 4)
    for size in sizes:
        for batch in batches:
            ends = (batches[0], batches[-1]) if context.cuda else batches[:1]
            whole = "" if batch in ends else ONCE
            forced = LARGEST if context.cuda and batch != batches[-1] else whole
            yield _case(context, size, batch, whole, forced)


def _case(context: BenchContext, size: str, batch: int, whole: str, forced: str) -> Case:
    """whole, forced: why there is nothing compiled, and nothing compiled with cuDNN's attention; "" if there is."""
    spec = specification(size, context)
    nets = Nets(spec, context)

    def exact(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        net = nets.double()
        rows = [slice(i, i + ROWS) for i in range(0, batch, ROWS)]
        return torch.cat([net(x[some].double(), t[some].double(), {"y": y[some]}) for some in rows])

    def cudnn() -> Function:
        return under_cudnn(nets.theirs, context)

    calls = [Call("plain", lambda: _ours(nets.plain), ours=True)]
    calls += [Call(name, partial(_engine, nets, name, whole), ours=True) for name in nets.engines()]
    calls += [
        Call("diffusers eager", lambda: _theirs(nets.theirs)),
        Call("diffusers eager, cuDNN", lambda: _theirs(cudnn())),
        Call("diffusers compiled", lambda: _theirs(compiled(nets.theirs, context, whole))),
        Call("diffusers compiled, cuDNN", lambda: _theirs(compiled(cudnn(), context, forced))),
    ]
    return Case(
        name=f"DiT-{size}{', tiny' if context.quick else ''}, batch {batch}",
        dtype=context.dtype,
        calls=calls,
        inputs=lambda seed: nets.draw(batch, seed),
        exact=exact,
        view=lambda out: out[:, : spec.channels],
        baseline="diffusers eager",
        tolerance_ulps=1024,
        flops=batch * forward_flops(spec),
        bytes=nets.weight_bytes(),
        rates={"images/s": batch},
        mfu=True,
    )


def _engine(nets: Nets, name: str, reason: str) -> Callable[..., Tensor]:
    return _ours(nets.engine(name, reason))


def _ours(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, t, y: net(x, t, {"y": y})


def _theirs(model: Function) -> Callable[..., Tensor]:
    def call(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x, timestep=t, class_labels=y, return_dict=False)[0]

    return call
