"""The discriminator: a head upon a denoiser's features of noised samples, and the losses of both sides.

Its logit at x_t is trained towards log p_t(x_t) - log q_t(x_t), p the data and q the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.diffusion.alignment import tokens_of
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.tap import FeatureRecorder
from gen.training.objectives.repa import site_shape

__all__ = [
    "DiscriminatorHead",
    "discriminator_accuracy",
    "discriminator_head",
    "discriminator_logits",
    "discriminator_losses",
    "generator_losses",
    "r1_penalty",
]


class DiscriminatorHead(nn.Module):
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
            last = net.get_submodule("2")
            for p in last.parameters():
                nn.init.zeros_(p)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.tokens, self.whole, features, strict=True)
        return torch.cat([whole(tokens(h).mean(1)) for tokens, whole, h in pairs], 1)


def discriminator_head(net: nn.Module, sites: Sequence[str], hidden: int) -> DiscriminatorHead:
    """Build a head upon a network's features.

    Args:
        net: the network.
        sites: its whole values, such as "hidden.3" or "middle".
        hidden: width of the head.

    Raises:
        UserError: for a site that is not there; names those that are.
    """
    return DiscriminatorHead([site_shape(net, site)[1] for site in sites], hidden)


def discriminator_logits(
    head: nn.Module, f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond, sites: Sequence[str]
) -> Tensor:
    """Return the discriminator's logits [B] of x_t, the mean over its sites.

    Args:
        head: a DiscriminatorHead.
        f: the denoiser whose features it sees.
        x, t: noisy samples [B, ...] and their times [B].
        cond: the condition.
        sites: see `discriminator_head`.

    Raises:
        UserError: for a denoiser without a network.
    """
    if not isinstance(f, Denoiser):
        raise UserError(f"a {type(f).__name__} has no features for a discriminator: take features = fake")
    record = FeatureRecorder(tuple(sites))
    f.output(x, t, cond, tap=record)
    return head([tokens_of(record.features[site]) for site in sites]).mean(1)


def discriminator_losses(real: Tensor, fake: Tensor) -> Tensor:
    """Return softplus(-real) + softplus(fake), elementwise: its minimum is log p - log q.

    Args:
        real, fake: logits of data and of the student's samples, [B].
    """
    return F.softplus(-real) + F.softplus(fake)


def generator_losses(fake: Tensor) -> Tensor:
    """Return softplus(-fake), the non-saturating loss (Goodfellow et al. 2014), elementwise.

    Args:
        fake: logits of the student's samples, [B].
    """
    return F.softplus(-fake)


def r1_penalty(logit: Tensor, x: Tensor) -> Tensor:
    """Return |d logit / dx|^2 of each sample, [B] (Mescheder et al. 2018).

    Args:
        logit: logits [B].
        x: what they are of, [B, ...], with gradients.
    """
    (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1)


def discriminator_accuracy(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return how often the discriminator is right on either side; one half where it knows nothing.

    Args:
        real, fake: logits [B].
    """
    return {"real_accuracy": (real > 0).double().mean(), "fake_accuracy": (fake <= 0).double().mean()}
