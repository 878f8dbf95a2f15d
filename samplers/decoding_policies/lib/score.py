"""What places are ranked by, how many of the best are taken, and what a policy remembers of each place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gen.text.contracts import StepView

__all__ = ["Score", "even", "first", "recall", "score", "store"]

Score = Literal["confidence", "margin", "entropy", "random", "left_to_right", "sample"]


def score(view: StepView, by: Score) -> Tensor:
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
        value = -view.positions.double()
    else:
        value = view.sampled_probability
    return value.masked_fill(~view.masked, -torch.inf)


def first(value: Tensor, count: Tensor) -> Tensor:
    """Where the `count` [B] largest of value [B, W] stand, those of -inf never; the lowest place first among equals."""
    order = value.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(value.shape[-1], device=value.device).expand_as(order)
    )
    return (rank < count[:, None]) & (value > -torch.inf)


def even(mask_budget: Tensor, step: Tensor, steps: Tensor | int) -> Tensor:
    """How many of `owed` masks fall to a step if they are shared out evenly, the first steps taking one more; >= 1."""
    return (mask_budget // steps + (step < mask_budget % steps)).clamp(min=1)


def recall(memory: Tensor, view: StepView) -> Tensor:
    """What a memory [B, N] of the whole canvas holds of the view's places, [B, W]."""
    return memory.to(view.logp).gather(1, view.positions)


def store(memory: Tensor, view: StepView, where: Tensor, new: Tensor) -> Tensor:
    """The memory [B, N] with `new` [B, W] written at those of the view's places; places may repeat at its end."""
    memory = memory.to(view.logp)
    n = memory.shape[1]
    positions = torch.where(where, view.positions, n)
    return torch.cat([memory, memory[:, :1]], 1).scatter(1, positions, new.to(memory))[:, :n]
