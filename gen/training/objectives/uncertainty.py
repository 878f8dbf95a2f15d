"""Denoising with learned weights: a noise level is weighted by how well it is predicted (Kendall et al. 2018; EDM2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.times import LogNormal, Times
from gen.diffusion.weighting import EDMWeighting, Weighting
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["Uncertainty"]

MAX_LAM = 20.0  # half log-SNR is clamped here; it is infinite at t = 0


@dataclass(frozen=True)
class Uncertainty(Denoising):
    """E weight(t) |net - target|^2 / e^u(t) + u(t), u trained with the net (Karras et al. 2024, equations 14 to 16).

    The best u(t) is the logarithm of the weighted loss at t, so every noise level has the same loss, 1, and the minimum
    is E ln(loss) + 1. A network with a `logvar` (EDM2) has its own u; others get a head, saved in its own file.
    Validation is the plain weighted loss, comparable with that of Denoising.

    Attributes:
        times, weighting: see Denoising; defaults EDM2's for ImageNet-512.
        channels: number of Fourier features of the head; EDM2's default.
        class_dropout: see Denoising; EDM2 has 0, as it guides with a separate network.
    """

    times: Times = part("diffusion.times", default=LogNormal(-0.4, 1.0))
    weighting: Weighting = part("diffusion.weighting", default=EDMWeighting())
    channels: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, channels="[1, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        return {"net": net} if members(net).logvar else {"net": net, "head": LogVariance(self.channels)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f: Denoiser = roles["net"]
        t, cond = self.draw(f, batch)
        losses = self.losses(f, batch, cond, t)  # [B]
        u = self.logvar(roles, t).to(losses)  # [B]
        role = ("net", "head") if "head" in roles else "net"
        yield role, (losses / u.exp() + u).mean(), {"error": losses.mean(), "logvar": u.mean()}

    def logvar(self, roles: Roles, t: Tensor) -> Tensor:
        """Return u [B] at times t [B]."""
        f: Denoiser = roles["net"]
        own = members(f.net).logvar
        if own:
            return own(f.path.t_to_network(t).float())
        return roles["head"].net(f.path.lam(t).clamp(-MAX_LAM, MAX_LAM).float() / 4)


class LogVariance(nn.Module):
    """u of a quarter of the half log-SNR [B] (EDM: -ln(sigma) / 4), in random Fourier features; 0 when initialised."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))
        self.linear = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, t: Tensor) -> Tensor:
        wave = (t[:, None] * self.freqs + self.phases).cos() * math.sqrt(2 / len(self.freqs))  # [B, channels]
        return self.linear(wave)[:, 0]
