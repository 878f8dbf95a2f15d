"""The discriminator: a head upon a denoiser's features of noised samples, and the losses of both sides.

Its logit at x_t is trained towards log p_t(x_t) - log q_t(x_t), p the data and q the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.config.errors import UserError
from gen.diffusion.alignment import tokens_of
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.tap import Record
from gen.training.objectives.repa import site_shape

__all__ = [
    "Head",
    "accuracies",
    "discriminator_losses",
    "generator_losses",
    "head_for",
    "input_penalty",
    "logits",
    "twice_differentiable",
]


class Head(nn.Module):
    """Tokens [B, T, D], one tensor for each site, to logits [B, sites].

    For each site: a layer norm and a linear map of each token, the mean over tokens, and two layers on that. The
    denoiser below has mixed the tokens already; the last layer begins at zero: a ratio of 1 everywhere.
    """

    def __init__(self, widths: Sequence[int], hidden: int = 128):
        super().__init__()
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU()) for width in widths
        )
        self.whole = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for _ in widths
        )
        for net in self.whole:
            last: Any = net
            nn.init.zeros_(last[-1].weight)
            nn.init.zeros_(last[-1].bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.tokens, self.whole, features, strict=True)
        return torch.cat([whole(tokens(h).mean(1)) for tokens, whole, h in pairs], 1)


def head_for(net: Any, sites: Sequence[str], hidden: int) -> Head:
    """A head for these whole values of a network, "hidden.3" or "middle". UserError names those that there are."""
    return Head([site_shape(net, site)[1] for site in sites], hidden)


def logits(head: Any, f: Any, x: Tensor, t: Tensor, cond: Cond, sites: Sequence[str]) -> Tensor:
    """The discriminator's logits [B] of x_t at t [B], the mean over its sites, from the features of denoiser f."""
    if not isinstance(f, Denoiser):
        raise UserError(f"a {type(f).__name__} has no features for a discriminator: take features = fake")
    record = Record(tuple(sites))
    f.output(x, t, cond, tap=record)
    out: Tensor = head([tokens_of(record.features[site]) for site in sites])
    return out.mean(1)


def discriminator_losses(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-real) + softplus(fake), elementwise: its minimum is log p - log q."""
    return F.softplus(-real) + F.softplus(fake)


def generator_losses(fake: Tensor) -> Tensor:
    """softplus(-fake), the non-saturating loss (Goodfellow et al. 2014), elementwise."""
    return F.softplus(-fake)


def input_penalty(logit: Tensor, x: Tensor) -> Tensor:
    """|d logit / dx|^2 of each sample, [B] (R1, Mescheder et al. 2018), for logits of an x that wants gradients."""
    (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1)


@contextmanager
def twice_differentiable(needed: bool) -> Iterator[None]:
    """Inside, attention is computed plainly if `needed`: the fast kernels have no second derivative."""
    if not needed:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


def accuracies(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """How often the discriminator is right on either side; one half when it knows nothing."""
    return {"real_accuracy": (real > 0).double().mean(), "fake_accuracy": (fake <= 0).double().mean()}
