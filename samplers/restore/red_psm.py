"""RED-PSM: a film from few measurements of each frame, as a partially separable product under a denoiser's prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.samplers.restore.lib.restorer import Restorer

__all__ = ["RedPSM", "cubic_hermite", "denoised_frames"]


@dataclass(frozen=True)
class RedPSM(Restorer):
    """|A f - y|^2 + weight f'(f - D(f)) / 2 + ..., f split from a product of rank K (Iskender et al. 2024).

    f = Lambda Psi' with Lambda [pixels, K] and Psi [P, K] a cubic spline of its values at `nodes` of the P frames. In
    each round Adam steps on both lower the mean squares of A(Lambda Psi') - y and, times beta / 2, of Lambda Psi' - f +
    gamma; then f = (weight D(f) + beta (Lambda Psi' + gamma)) / (weight + beta), and gamma grows by Lambda Psi' - f.
    The denoiser is a prior's E[x0 | x] at one level, so any checkpoint of frames will do. The public code has the norm
    itself instead of its square in the split.

    Attributes:
        rank: K; the paper has 6 for 128 frames and 10 for 256.
        nodes: of the spline; 9 and 11.
        rounds: 201 and 101.
        weight, beta: of the regulariser and of the split; 2e-4 each, and 5e-5 and 1e-4.
        decay: of the mean squares of Psi and Lambda.
        steps: of Adam in a round.
        lr: its learning rate.
        level: sigma / alpha at which the prior denoises.
    """

    ties_rows: ClassVar[bool] = True

    rank: int = 6
    nodes: int = 9
    rounds: int = 201
    weight: float = 2e-4
    beta: float = 2e-4
    decay: float = 1e-6
    steps: int = 25
    lr: float = 5e-3
    level: float = 0.05

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("beta", "lr", "level"), "(0, inf)")
        whole = dict.fromkeys(("rank", "rounds", "steps"), "[1, inf)")
        check_fields(self, nodes="[2, inf)", weight="[0, inf)", decay="[0, inf)", **positive, **whole)

    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Any,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        """Return the film [P, C, H, W].

        Args:
            denoise: a prior of frames [C, H, W].
            y: measurements, [P, ...].
            operator: its A takes the film to y and is differentiable.
            shape: (P, C, H, W), with at least `nodes` frames.
            noise: one seed for each frame, of which the factors are begun with.
            cond: of the prior, [P, ...].
        """
        frames, pixels = shape[0], torch.Size(shape[1:]).numel()
        if frames < self.nodes:
            raise UserError(f"RedPSM: nodes = {self.nodes} for {frames} frames; allowed: 2 .. {frames}")
        first = noise.normal("factors", (self.rank, *shape[1:])).to(y)[0]
        basis = cubic_hermite(self.nodes, frames).to(y)
        knots = torch.linspace(-1, 1, self.nodes, dtype=y.dtype, device=y.device)[:, None]
        angles = torch.arange(self.rank, dtype=y.dtype, device=y.device) * torch.pi / 2
        factors = [
            (first.reshape(self.rank, pixels) * 0.1).requires_grad_(),
            torch.cos(angles * (knots + 1)).requires_grad_(),
        ]
        optimiser = torch.optim.Adam(factors, self.lr)
        film, gap = y.new_zeros(shape), y.new_zeros(shape)
        for _ in range(self.rounds):
            product = self._fit(optimiser, factors, basis, operator, y, film - gap)
            film = denoised_frames(denoise, film, product + gap, self.weight, self.beta, self.level, cond)
            gap = gap + product - film
        return film

    def _fit(
        self, optimiser: Any, factors: list[Tensor], basis: Tensor, operator: Any, y: Tensor, near: Tensor
    ) -> Tensor:
        """Take the Adam steps of one round, and return the product Lambda Psi', shaped as near."""

        def product() -> Tensor:
            return (basis @ factors[1] @ factors[0]).reshape(near.shape)

        for _ in range(self.steps):
            with torch.enable_grad():
                film = product()
                loss = (operator.A(film) - y).square().mean() + self.beta / 2 * (film - near).square().mean()
                loss = loss + self.decay * ((basis @ factors[1]).square().mean() + factors[0].square().mean())
                optimiser.zero_grad()
                loss.backward(inputs=factors)
            optimiser.step()
        return product().detach()


def denoised_frames(
    f: DenoiserLike, film: Tensor, target: Tensor, weight: float, beta: float, level: float, cond: Cond | None
) -> Tensor:
    """Return (weight D(film) + beta target) / (weight + beta), D the prior's E[x0 | x] at one noise level.

    Args:
        f: the prior of frames.
        film, target: [P, ...].
        weight, beta: of the two.
        level: sigma / alpha of D.
        cond: of the prior.
    """
    t = f.path.t_from_lambda(-torch.tensor(level, dtype=torch.float64).log())
    clean = f(film * float(f.path.alpha(t)), t, cond).x0
    return (weight * clean + beta * target) / (weight + beta)


def cubic_hermite(nodes: int, frames: int) -> Tensor:
    """Return the matrix [frames, nodes], float64, from values at evenly spread nodes to a cubic spline's at all frames.

    Slopes are central differences, at the ends those of the first and of the last interval.

    Args:
        nodes: at least 2.
        frames: at least as many.
    """
    eye = torch.eye(nodes, dtype=torch.float64)
    slopes = torch.cat([eye[1:2] - eye[:1], (eye[2:] - eye[:-2]) / 2, eye[-1:] - eye[-2:-1]])
    at = torch.linspace(0, nodes - 1, frames, dtype=torch.float64)
    k = at.floor().long().clamp(max=nodes - 2)
    u = (at - k)[:, None]
    values = (2 * u**3 - 3 * u**2 + 1) * eye[k] + (3 * u**2 - 2 * u**3) * eye[k + 1]
    return values + (u**3 - 2 * u**2 + u) * slopes[k] + (u**3 - u**2) * slopes[k + 1]
