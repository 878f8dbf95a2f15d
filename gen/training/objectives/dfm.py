"""Decomposable flow matching: stages of a pyramid, each trained at a time of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.times import LogitNormal, Times
from gen.training.objectives import Batch, Objective, Roles, Step
from gen.training.objectives.denoise import drop_condition

__all__ = ["DFM"]


@dataclass(frozen=True)
class DFM(Objective):
    """sum_s |net_s - velocity_s|^2 over the stages that are seen, each a mean over its own elements.

    Haji-Ali et al. 2025, arXiv 2506.19839: the newest stage q that is seen is drawn by `shares`, its time from
    `times`, those of all coarser stages from `earlier`, and all finer stages are pure noise that the network is not
    shown. Their public code (snap-research/elit) has earlier = logit_normal(-2.0, 1.0), and draws q once for a whole
    batch; here each sample draws its own, which has the same mean. The network is gen.models.dfm, the path staged.

    Attributes:
        shares: probabilities of q, coarsest stage first, in proportion; one for each stage.
        times: the density of the newest stage's time; default the paper's.
        earlier: that of the coarser ones, mostly cleaner; default the paper's, whose mean of 1.5 counts from the noise.
        class_dropout: probability that a sample's condition is replaced by the null one.
    """

    shares: tuple[float, ...] = (0.9, 0.1)
    times: Times = part("diffusion.times", default=LogitNormal())
    earlier: Times = part("diffusion.times", default=LogitNormal(-1.5))
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, shares="[0, inf)", class_dropout="[0, 1]")
        if not sum(self.shares) > 0:
            raise UserError(f"DFM: shares = {shown(self.shares)}; at least one must be above 0")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        spec: Any = unwrap(net).spec
        pyramid = getattr(spec, "decomposition", None)
        if pyramid is None:
            raise UserError(
                f"DFM trains the model dfm, whose x is a pyramid of stages; this is a {type(spec).__name__}"
            )
        if pyramid.stages != len(self.shares):
            raise UserError(f"DFM: shares = {shown(self.shares)}; the model has {pyramid.stages} stages")
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        times, cond = batch.to_device(self.draw(batch)), drop_condition(f, batch, self.class_dropout)
        losses = self.losses(f, batch, cond, times)  # [B, S]
        seen = times[..., 1].sum(0).clamp(min=1)
        logs = {f"stage_{i}": loss for i, loss in enumerate((losses.sum(0) / seen.to(losses)).unbind())}
        yield "net", losses.sum(1).mean(), logs

    def draw(self, batch: Batch) -> Tensor:
        """Return time and speed of each stage, float64 [B, S, 2]."""
        newest = self.newest(batch.noise.uniform("stage"))
        return self.at(newest, batch.noise.uniform("t"), batch.noise.uniform("earlier", len(self.shares)))

    def newest(self, u: Tensor) -> Tensor:
        """Return the newest stage that is seen, int64 [B], of uniform numbers [B]."""
        edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(edges / edges[-1], u, right=True).clamp(max=len(self.shares) - 1)

    def at(self, newest: Tensor, u: Tensor, earlier: Tensor) -> Tensor:
        """Return time and speed of each stage, float64 [B, S, 2].

        Args:
            newest: the newest stage, int64 [B].
            u, earlier: quantiles of its time, [B], and of those of the coarser ones, [B, S].
        """
        path, stage = Flow(), torch.arange(len(self.shares))
        own, coarser = self.times.at(u, path)[:, None], self.earlier.at(earlier, path)
        t = torch.where(stage < newest[:, None], coarser, torch.where(stage == newest[:, None], own, 1.0))
        return torch.stack([t, (stage <= newest[:, None]).double()], -1)

    def losses(self, f: Denoiser, batch: Batch, cond: Cond, times: Tensor) -> Tensor:
        """Return the loss of each sample and stage, [B, S], 0 for stages that are not seen.

        Args:
            f: the network on its path.
            batch: images and noise.
            cond: of the network.
            times: time and speed of each stage, 0 or 1, [B, S, 2].
        """
        if not isinstance(f.parameterisation, Velocity) or len(f.path.knots) != len(self.shares) - 1:
            raise UserError(
                f"DFM trains velocities on a path staged of {len(self.shares) - 1} thresholds, such as "
                f'{{"name": "staged", "thresholds": [0.1]}}; this is {f.path} with {f.parameterisation}'
            )
        net: Any = unwrap(f.net)
        x0 = net.state(batch.x)
        eps = batch.to_device(batch.noise.normal("eps", x0.shape[1:])).to(x0)
        t = times[..., 0].to(x0)
        state = torch.cat(
            [torch.lerp(a.flatten(1), b.flatten(1), t[:, i : i + 1])
             for i, (a, b) in enumerate(zip(net.parts(x0), net.parts(eps), strict=True))], 1
        )  # fmt: skip
        time = times.to(state.dtype if state.dtype == torch.float64 else torch.float32)
        out = f.net(state, time, cond)
        error = (out - f.parameterisation.target(Flow(), x0, eps, t[:, 0])).float() ** 2
        means = torch.stack([part.flatten(1).mean(1) for part in net.parts(error)], 1)
        return means * times[..., 1].to(means)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the expected loss at 8 fixed times of the newest stage, with coarser ones at others, in all shares."""
        f, n = roles["net"], len(batch.x)
        u = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
        total = torch.zeros((), device=batch.x.device)
        for stage, share in enumerate(self.shares):
            for i in range(8 if share else 0):
                coarser = torch.stack([u[(3 * i + 5 * j) % 8] for j in range(len(self.shares))])
                times = self.at(torch.tensor([stage]), u[i : i + 1], coarser[None]).expand(n, -1, -1)
                loss = self.losses(f, batch, batch.cond, batch.to_device(times)).sum(1).mean()
                total = total + loss * (share / sum(self.shares) / 8)
        return total
