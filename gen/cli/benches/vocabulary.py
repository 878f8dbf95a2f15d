"""Choosing tokens from a vocabulary of LLaDA's size, beside the formulas written out: normalised, sorted, summed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gen.eval.bench import BenchContext, Call, Case, identity
from gen.text.decoding import TokenSampling
from gen.text.ties import TIE, descending
from gen.text.vocabulary import log_probabilities

__all__ = ["vocabulary"]

HOW = {
    "temperature 0": TokenSampling(),
    "temperature 1": TokenSampling(1.0),
    "temperature 1, top_p 0.9": TokenSampling(1.0, top_p=0.9),
}
EXPONENT = 1.3  # of the law of ranks: a few hundred tokens hold most of the probability


def vocabulary(context: BenchContext) -> Iterator[Case]:
    """Yield a case for each way of drawing: tokens from the logits of four windows of 32 positions, half of them masks.

    Args:
        context: device, dtype and size.
    """
    rows, size = (2, 9_000) if context.quick else (64, 126_464)
    for name, sampling in HOW.items():

        def inputs(seed: int) -> tuple[Any, ...]:
            generator = torch.Generator().manual_seed(seed)
            ranks = torch.stack([torch.randperm(size, generator=generator) for _ in range(rows)])
            logits = -EXPONENT * (ranks + 1).double().log()
            u = torch.rand(rows, dtype=torch.float64, generator=generator)
            return logits.to(context.device, context.dtype), u.to(context.device)

        def ours(logits: Tensor, u: Tensor, sampling: TokenSampling = sampling) -> Tensor:
            return sampling.draw(log_probabilities(logits, torch.tensor([size - 1], device=logits.device)), u)

        def written_out(logits: Tensor, u: Tensor, sampling: TokenSampling = sampling) -> Tensor:
            logp = logits.float().index_fill(-1, torch.tensor([size - 1], device=logits.device), -torch.inf)
            return _drawn(logp.log_softmax(-1), u, sampling)

        yield Case(
            name=f"{rows} positions, {size} tokens, {name}",
            dtype=context.dtype,
            calls=[Call("ours", partial(identity, ours), True), Call("eager", partial(identity, written_out))],
            inputs=inputs,
            exact=written_out,
            bytes=rows * size * context.dtype.itemsize,
            rates={"positions/s": rows},
        )


def _drawn(logp: Tensor, u: Tensor, sampling: TokenSampling) -> Tensor:
    """Return the tokens by the definition of a draw."""
    if sampling.temperature == 0:
        return (logp >= logp.amax(-1, keepdim=True) - TIE).to(torch.uint8).argmax(-1)
    logp = (logp.double() / sampling.temperature).log_softmax(-1)
    if sampling.top_p < 1:
        index = descending(logp)
        ordered = logp.softmax(-1).gather(-1, index)
        excluded = ordered.cumsum(-1) - ordered >= sampling.top_p - TIE
        logp = logp.masked_fill(excluded.gather(-1, index.argsort(-1)), -torch.inf)
    sums = logp.softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, (u * sums[..., -1])[..., None], right=True)[..., 0]
