"""Scores that rank positions, how many of the best to take, and memories of one number per position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gen.text.contracts import StepView
from gen.text.ties import TIE, descending

__all__ = ["Score", "even_share", "gather_memory", "scatter_memory", "score", "top_positions"]

Score = Literal["confidence", "margin", "entropy", "random", "left_to_right", "sample"]


def score(view: StepView, by: Score) -> Tensor:
    """Return the score of each queried position, [B, W]: larger is sooner, -inf where nothing may be committed.

    Args:
        view: inputs of the step.
        by: "confidence", the largest probability; "margin", the difference of the two largest; "entropy", its
            negative; "random"; "left_to_right"; "sample", the probability of the proposed token, as in LLaDA's code.
            At temperature > 0 the order of "sample" depends on what was drawn, and one token at a time is then no
            sample of the model's joint distribution (gen.text.worlds measures by how much).
    """
    values: dict[Score, Callable[[], Tensor]] = {
        "confidence": lambda: view.confidence,
        "margin": lambda: view.margin,
        "entropy": lambda: -view.entropy,
        "random": lambda: view.uniform("order") / TIE,  # no two of them count as equal
        "left_to_right": lambda: -view.positions.double(),
        "sample": lambda: view.sampled_probability,
    }
    return values[by]().masked_fill(~view.masked, -torch.inf)


def top_positions(value: Tensor, count: Tensor | int = 1) -> Tensor:
    """Return the positions of the largest values as a boolean mask [B, W]; among equals (gen.text.ties) the first.

    Args:
        value: scores [B, W]; positions of -inf are never chosen.
        count: positions of each row, [B] or one number.
    """
    order, chosen = descending(value), torch.zeros_like(value, dtype=torch.bool)
    if isinstance(count, Tensor):
        chosen.scatter_(-1, order, torch.arange(value.shape[-1], device=value.device) < count[:, None])
    else:
        chosen.scatter_(-1, order[..., :count], True)
    return chosen & (value > -torch.inf)


def even_share(budget: Tensor, step: Tensor, steps: Tensor | int) -> Tensor:
    """Return how much of a budget falls to a step if it is shared out evenly, the first steps taking one more; >= 1.

    Args:
        budget: whole numbers to share, int64 [B].
        step: index of the step, int64 [B].
        steps: how many steps share it, [B] or one number.
    """
    return (budget // steps + (step < budget % steps)).clamp(min=1)


def gather_memory(memory: Tensor, view: StepView) -> Tensor:
    """Return what a memory of the whole canvas holds at the view's positions, [B, W].

    Args:
        memory: a number for each position, [B, N].
        view: inputs of the step.
    """
    return memory.to(view.logp).gather(1, view.positions)


def scatter_memory(memory: Tensor, view: StepView, where: Tensor, new: Tensor) -> Tensor:
    """Return the memory [B, N] with new numbers at some of the view's positions.

    Args:
        memory: a number for each position of the canvas, [B, N].
        view: inputs of the step.
        where: positions that are written, bool [B, W].
        new: numbers [B, W].
    """
    memory = memory.to(view.logp)
    n = memory.shape[1]
    slots = torch.where(where, view.positions, n)  # positions may repeat at the canvas's end
    return torch.cat([memory, memory[:, :1]], 1).scatter(1, slots, new.to(memory))[:, :n]
