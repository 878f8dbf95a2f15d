"""What places are ranked by, how many of the best are taken, and what a policy remembers of each place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gen.text.contracts import View

__all__ = ["Score", "even", "first", "recall", "score", "store"]

Score = Literal["confidence", "margin", "entropy", "random", "left_to_right", "sample"]


def score(view: View, by: Score) -> Tensor:
    """The larger the sooner, [B, W]; -inf where nothing may be committed.

    sample: the probability of the drawn token, as in LLaDA's code. At temperature > 0 that order depends on what was
    drawn, and one token at a time is then no sample of the model's joint (gen/text/worlds.py measures by how much).
    """
    if by == "confidence":
        value = view.confidence
    elif by == "margin":
        value = view.margin
    elif by == "entropy":
        value = -view.entropy
    elif by == "random":
        value = view.uniform("order")
    elif by == "left_to_right":
        value = -view.at.double()
    else:
        value = view.chosen
    return value.masked_fill(~view.masked, -torch.inf)


def first(value: Tensor, count: Tensor) -> Tensor:
    """Where the `count` [B] largest of value [B, W] stand, those of -inf never; the lowest place first among equals."""
    order = value.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(value.shape[-1], device=value.device).expand_as(order)
    )
    return (rank < count[:, None]) & (value > -torch.inf)


def even(owed: Tensor, step: Tensor, steps: Tensor | int) -> Tensor:
    """How many of `owed` masks fall to a step if they are shared out evenly, the first steps taking one more; >= 1."""
    return (owed // steps + (step < owed % steps)).clamp(min=1)


def recall(memory: Tensor, view: View) -> Tensor:
    """What a memory [B, N] of the whole canvas holds of the view's places, [B, W]."""
    return memory.to(view.logp).gather(1, view.at)


def store(memory: Tensor, view: View, where: Tensor, new: Tensor) -> Tensor:
    """The memory [B, N] with `new` [B, W] written at those of the view's places; places may repeat at its end."""
    memory = memory.to(view.logp)
    n = memory.shape[1]
    at = torch.where(where, view.at, n)
    return torch.cat([memory, memory[:, :1]], 1).scatter(1, at, new.to(memory))[:, :n]
