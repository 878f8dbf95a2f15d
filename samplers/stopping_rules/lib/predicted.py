"""Where masks still stand, what is guessed there, and which tokens end a text."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.text.contracts import Predictor, StepView

__all__ = ["is_stop", "mean", "open_places"]


def is_stop(tokens: Tensor, f: Predictor) -> Tensor:
    """Where one of the predictor's stop tokens stands, bool of tokens' shape."""
    return torch.isin(tokens, torch.tensor(f.eos_token_ids, dtype=tokens.dtype, device=tokens.device))


def open_places(view: StepView) -> Tensor:
    """The places that were masked when the view was taken, in the window or not, [B, W]."""
    return view.masked | view.outside_window


def mean(value: Tensor, where: Tensor) -> Tensor:
    """The mean of value [B, W] over some places of each row, [B]; nan for rows that have none."""
    return value.masked_fill(~where, 0).sum(-1) / where.sum(-1)
