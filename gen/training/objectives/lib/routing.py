"""Balance of a mixture of experts: a loss that is least where a text uses all of them evenly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from gen.config.errors import UserError
from gen.diffusion.net import unwrap

__all__ = ["imbalance", "recorded_routers", "routers"]

Routed = tuple[Tensor, Tensor]  # experts [R, F, k], scores [R, F, count]


def routers(net: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that choose experts: those with a true attribute `is_router`.

    Args:
        net: a network, wrapped or not. A router's output is (experts int64 [R, F, k], weights, scores [R, F, count]).
    """
    return [module for module in unwrap(net).modules() if getattr(module, "is_router", False)]


@contextmanager
def recorded_routers(net: nn.Module | None) -> Iterator[list[Routed]]:
    """Collect the experts and the scores of every router that is called meanwhile.

    Args:
        net: a network, wrapped or not; None to collect nothing.
    """
    calls = list[Routed]()

    def record(_module: nn.Module, _inputs: Any, out: tuple[Tensor, Tensor, Tensor]) -> None:
        calls.append((out[0], out[2]))

    handles = [] if net is None else [router.register_forward_hook(record) for router in routers(net)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def imbalance(calls: list[Routed], documents: Tensor) -> Tensor:
    """Return count times sum over experts of f P of each position's text, the mean over routers, [B, N]; 1 where even.

    f is the share of the text's choices that went to an expert, P the mean of its scores, which are divided by their
    sum: Switch's loss (Fedus et al. 2021, arXiv 2101.03961, eqs. 4 to 6) of each text by itself, as DeepSeek-V3 has it
    (arXiv 2412.19437, eqs. 17 to 20), so that it does not depend on how a batch is cut. The gradient is that of P.

    Args:
        calls: of routers, for R = r B rows of F = c N positions: r copies of a batch, of c copies of a text each.
        documents: the text of each position, int64 [B, N] (gen.text.documents).

    Raises:
        UserError: for no calls.
    """
    if not calls:
        raise UserError("balance: no router was called, so the network's experts cannot be balanced")
    b, n = documents.shape
    own, total = one_hot(documents), torch.zeros(())  # [B, N, D]
    for experts, scores in calls:
        (rows, length, count), k = scores.shape, experts.shape[-1]
        texts = own.repeat(rows // b, length // n, 1).mT.to(scores)  # [R, D, F]
        tokens = texts.sum(-1, keepdim=True).clamp(min=1)
        chosen = texts @ one_hot(experts, count).sum(-2).to(scores) / (k * tokens)  # [R, D, count]
        share = texts @ (scores / scores.sum(-1, keepdim=True)) / tokens
        uneven = count * (chosen * share).sum(-1)  # [R, D]
        total = total.to(uneven) + uneven.view(-1, b, own.shape[-1]).mean(0)
    return (total / len(calls)).gather(1, documents)
