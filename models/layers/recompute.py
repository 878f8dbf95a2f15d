"""Gradient checkpointing: blocks that keep their input alone for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from gen.diffusion.tap import Compute

__all__ = ["recomputed"]


def recomputed(module: Any, f: Compute) -> Compute:
    """Return f; if `module.gradient_checkpointing` is set, an f whose inner values are not kept for the gradient.

    They are computed again in the backward pass, with the same dropout (Chen et al. 2016, arXiv 1604.06174), and taps
    of sites within f are called again.

    Args:
        module: the block that f is, or the network that it is part of; gen.training.state.enable sets its attribute.
        f: a function of h.
    """
    if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
        return partial(checkpoint, f, use_reentrant=False)
    return f
