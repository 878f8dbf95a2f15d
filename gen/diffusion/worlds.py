"""Exact worlds: data distributions whose denoiser is known in closed form, on every path.

They are called as a Denoiser is, so every solver, guide, cache and objective runs on a model whose answer is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.diffusion.denoiser import Cond
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Tap

__all__ = ["Correlated", "CorrelatedMixture", "Gaussian", "GaussianStages", "Mixture", "chord"]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data N(mean, diag(std^2)); called with a target time s, its own exact flow map.

    Attributes:
        path: of the noise.
        mean, std: [D] each.
    """

    path: NoisePath
    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return data of unit noise [B, D]: the exact end of the probability-flow ODE that starts in that noise."""
        return self.mean + self.std * noise

    def spread(self, t: Tensor) -> Tensor:
        """Return the standard deviation of x_t, [D] or [B, D]."""
        alpha, sigma = self.path.alpha(t)[..., None], self.path.sigma(t)[..., None]
        return ((alpha * self.std) ** 2 + sigma**2).sqrt()

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Map x [B, D] from t to s along the probability-flow ODE."""
        centred = (x - self.path.alpha(t)[..., None] * self.mean) / self.spread(t)
        return self.path.alpha(s)[..., None] * self.mean + self.spread(s) * centred

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Return grad log p_t(x)."""
        return (self.path.alpha(t)[..., None] * self.mean - x) / self.spread(t) ** 2

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if s is not None:
            return chord(self.path, x, self.flow(x, t, s), t, s)
        alpha, sigma = self.path.alpha(t)[..., None], self.path.sigma(t)[..., None]
        x0 = (sigma**2 * self.mean + alpha * self.std**2 * x) / self.spread(t) ** 2
        return Prediction(x0, -sigma * self.score(x, t))

    def null(self, cond: Cond) -> Cond:
        return {}


@dataclass(frozen=True, eq=False)
class Correlated:
    """Data N(mean, covariance), and what is known of them from y = A x + noise.

    Attributes:
        path: of the noise.
        mean: [D].
        covariance: [D, D], positive definite.
    """

    path: NoisePath
    mean: Tensor
    covariance: Tensor

    def posterior(self, A: Tensor, y: Tensor, noise: float) -> Correlated:
        """Return the law of x given y.

        Args:
            A: [M, D].
            y: [M].
            noise: standard deviation of the measurement's noise.
        """
        cross = self.covariance @ A.mT
        gain = torch.linalg.solve(A @ cross + noise**2 * torch.eye(len(A)).to(A), cross.mT).mT  # [D, M]
        return Correlated(self.path, self.mean + gain @ (y - A @ self.mean), self.covariance - gain @ cross.mT)

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        values, vectors = torch.linalg.eigh(self.covariance)
        a, b = expand(self.path.alpha(t), x), expand(self.path.sigma(t), x)
        centred = (x - a * self.mean) @ vectors
        share = 1 / (a**2 * values + b**2)
        x0 = self.mean + (a * values * share * centred) @ vectors.mT
        return Prediction(x0, (b * share * centred) @ vectors.mT)

    def null(self, cond: Cond) -> Cond:
        return {}


@dataclass(frozen=True, eq=False)
class CorrelatedMixture:
    """Data of K kinds, equally often, each N(0, its covariance): x shows its kind, and the kind what goes with what.

    Attributes:
        path: of the noise.
        covariances: [K, D, D], positive definite.
    """

    path: NoisePath
    covariances: Tensor

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n data, [n, D]."""
        values, vectors = torch.linalg.eigh(self.covariances)
        kinds = torch.randint(len(values), (n,), generator=generator)
        noise = torch.randn(n, values.shape[1], generator=generator, dtype=values.dtype)
        for k, (value, vector) in enumerate(zip(values, vectors, strict=True)):
            noise[kinds == k] = noise[kinds == k] * value.sqrt() @ vector.mT
        return noise

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        values, vectors = torch.linalg.eigh(self.covariances)
        a, b = (expand(of(t), x)[..., None] for of in (self.path.alpha, self.path.sigma))
        along = torch.einsum("kde,bd->bke", vectors, x)
        spread = a**2 * values + b**2
        kinds = (-(along**2 / spread + spread.log()).sum(-1) / 2).softmax(-1)[..., None]  # [B, K, 1]
        shares = kinds * along / spread
        x0, eps = (torch.einsum("kde,bke->bd", vectors, part * shares) for part in (a * values, b))
        return Prediction(x0, eps)

    def null(self, cond: Cond) -> Cond:
        return {}


@dataclass(frozen=True, eq=False)
class GaussianStages:
    """Data N(0, covariance) in stages, each at its own time (Haji-Ali et al. 2025): the flow of correlated stages.

    Stages that have not begun, of speed 0, are not seen.

    Attributes:
        path: gives each stage its time and speed, such as gen.diffusion.path.Staged.
        covariance: of all stages' numbers, coarsest first, [D, D]; it may be singular.
        sizes: how many numbers each stage has.
    """

    path: NoisePath
    covariance: Tensor
    sizes: tuple[int, ...]

    def velocity(self, x: Tensor, times: Tensor) -> Tensor:
        """Return E[eps - x0 | x] of the stages that are seen, times their speeds, [B, D].

        Args:
            x: [B, D].
            times: time and speed of each stage, [B, S, 2].
        """
        joint, seen, speed = self._joint(times)
        total = joint[0] + torch.diag_embed(1 - seen)  # of unseen numbers 1, so that it has an inverse
        return -speed * (joint[1] @ torch.linalg.solve(total, (seen * x)[..., None]))[..., 0]

    def best_loss(self, times: Tensor) -> Tensor:
        """Return the least mean square error of eps - x0 in each stage, [B, S]; 0 in those that are not seen.

        Args:
            times: as of `velocity`.
        """
        (total, cross), seen, _ = self._joint(times)
        total = total + torch.diag_embed(1 - seen)
        prior = self.covariance.diagonal() + 1
        known = (cross * torch.linalg.solve(total, cross.mT).mT).sum(-1)
        return torch.stack([part.mean(1) for part in (seen * (prior - known)).split(self.sizes, 1)], 1)

    def _joint(self, times: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Cov(x) and Cov(x0 - eps, x) where seen, [B, D, D] each; and whether seen, and the speed, [B, D] each."""
        each = times.to(self.covariance).repeat_interleave(torch.tensor(self.sizes, device=times.device), 1)
        sigma, speed = each.unbind(-1)
        seen = (speed != 0).to(sigma)
        alpha, sigma = seen * (1 - sigma), seen * sigma
        total = alpha[:, :, None] * self.covariance * alpha[:, None] + torch.diag_embed(sigma**2)
        return (total, seen[:, :, None] * self.covariance * alpha[:, None] - torch.diag_embed(sigma)), seen, speed

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        times = self.path.t_to_network(t)
        out = self.velocity(x, times.expand(len(x), *times.shape[t.ndim :]))
        return Velocity().solve(self.path, x, out, t)

    def null(self, cond: Cond) -> Cond:
        return {}


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sum_k weights[k] N(means[k], stds[k]^2 I), each component with a class.

    The condition {"y": [B]} keeps the components of that class; the label `classes`, one more than the last, keeps all.
    On the line (D = 1), called with a target time s, it is its own exact flow map, of the unconditional ODE; in more
    dimensions, where that is not known, s changes nothing.

    Attributes:
        path: of the noise.
        means: [K, D].
        stds, weights: [K] each; the weights sum to 1.
        labels: class of each component, int64 [K].
    """

    path: NoisePath
    means: Tensor
    stds: Tensor
    weights: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n points [n, D] and their classes [n]."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k, None] * noise, self.labels[k]

    def log_joint(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return log weights[k] N(x; alpha means[k], v_k I) for every component, [B, K]."""
        alpha, variance = self._moments(t)
        square = ((x[:, None] - alpha[..., None] * self.means) ** 2).sum(-1)
        dim = self.means.shape[1]
        log = self.weights.log() - square / (2 * variance) - dim / 2 * (2 * math.pi * variance).log()
        if not cond:
            return log
        y = cond["y"][:, None]
        return log.masked_fill((y != self.labels) & (y != self.classes), -math.inf)

    def log_prob(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return log p_t(x), up to the class's prior under a condition; [B]."""
        return torch.logsumexp(self.log_joint(x, t, cond), 1)

    def score(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Return grad log p_t(x), [B, D]."""
        return -self(x, t, cond).eps / expand(self.path.sigma(t), x)

    def cdf(self, x: Tensor, t: Tensor) -> Tensor:
        """Return P(x_t <= x) of a mixture on the line, x [B, 1], unconditional."""
        alpha, variance = self._moments(t)
        z = (x - alpha * self.means[:, 0]) / variance.sqrt()  # [B, K]
        return (self.weights * torch.special.ndtr(z)).sum(1, keepdim=True)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Map x [B, 1] on the line from t to s along the probability-flow ODE: to the point of the same quantile."""
        quantile, reach = self.cdf(x, t), 40 * (self.means.abs().max() + self.stds.max() + self.path.sigma(s).max())
        low, high = torch.full_like(x, -float(reach)), torch.full_like(x, float(reach))
        for _ in range(100):
            middle = (low + high) / 2
            below = self.cdf(middle, s) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if s is not None and self.means.shape[1] == 1:
            return chord(self.path, x, self.flow(x, t, s), t, s)
        alpha, variance = self._moments(t)
        posterior = self.log_joint(x, t, cond).softmax(1)[..., None]  # [B, K, 1]: whose point is x?
        alpha, variance = alpha[..., None], variance[..., None]
        sigma = self.path.sigma(t).reshape(-1, 1, 1)
        away = x[:, None] - alpha * self.means  # [B, K, D]
        x0 = self.means + alpha * self.stds[:, None] ** 2 / variance * away
        return Prediction((posterior * x0).sum(1), (posterior * sigma / variance * away).sum(1))

    def null(self, cond: Cond) -> Cond:
        return {**cond, "y": torch.full_like(cond["y"], self.classes)}

    def _moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha [B or 1, 1] and each component's variance at t, [B or 1, K]."""
        alpha, sigma = self.path.alpha(t).reshape(-1, 1), self.path.sigma(t).reshape(-1, 1)
        return alpha, (alpha * self.stds) ** 2 + sigma**2


def chord(path: NoisePath, x: Tensor, end: Tensor, t: Tensor, s: Tensor) -> Prediction:
    """Return the constant x0 and eps that lead from x at t straight to `end` at s: the prediction of a flow map.

    Args:
        path: of the noise.
        x, end: states at t and at s, [B, ...].
        t, s: times, 0-d or [B].
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (
        expand(c, x) for c in (path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s))
    )
    det = alpha_t * sigma_s - sigma_t * alpha_s
    return Prediction((sigma_s * x - sigma_t * end) / det, (alpha_t * end - alpha_s * x) / det)
