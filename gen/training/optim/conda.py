"""Conda: Adam in the singular basis of the momentum."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gen.config.fields import check_fields
from gen.training.optim import decouple_weight_decay

__all__ = ["Conda", "CondaOptimizer"]


@dataclass(frozen=True)
class Conda:
    """Adam whose second moments are those of gradients in a column basis (Wang et al. 2025, arXiv 2509.24218).

    Of a matrix with momentum m = U S V', the basis Q is V of a tall one and U of a wide one, drawn anew every `gap`
    steps: v <- b2 v + (1 - b2) (g Q)^2 and p <- (1 - lr weight_decay) p - lr scale c (m Q / (sqrt v + eps)) Q' with
    c = sqrt(1 - b2^k) / (1 - b1^k), and with Q' from the left for a wide one. Other parameters are Adam's, with that
    same c. The public code decays weights after the step, and v is not turned with the basis, there and here.

    Attributes:
        lr: peak learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        gap: steps between two bases; 2000 as published.
        scale: of the updates of matrices.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gap: int = 2000
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive = {"eps": "(0, inf)", "scale": "(0, inf)", "gap": "[1, inf)"}
        check_fields(self, lr="(0, 1000]", betas="[0, 1)", weight_decay="[0, inf)", **positive)

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        groups = decouple_weight_decay(parameters, self.weight_decay)
        return CondaOptimizer(groups, asdict(self))


class CondaOptimizer(torch.optim.Optimizer):
    """Conda as a torch optimiser; its state are "step", "exp_avg", "exp_avg_sq" and, of matrices, "basis".

    Args:
        params, defaults: as of torch.optim.Optimizer; defaults has the fields of Conda.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (b1, b2) = self.state[p], group["betas"]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        mean: Tensor = state["exp_avg"].lerp_(grad, 1 - b1)
        if p.ndim == 2:
            if (state["step"] - 1) % group["gap"] == 0:
                state["basis"] = basis(mean)
            grad, mean = turned(grad, state["basis"]), turned(mean, state["basis"])
        state["exp_avg_sq"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        change = mean / (state["exp_avg_sq"].sqrt() + group["eps"])
        rate = group["lr"] * (1 - b2 ** state["step"]) ** 0.5 / (1 - b1 ** state["step"])
        if p.ndim == 2:
            change, rate = turned(change, state["basis"].mT), rate * group["scale"]
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=rate)


def basis(mean: Tensor) -> Tensor:
    """Return the singular vectors of the shorter side of a matrix [m, n] as columns, [min(m, n), min(m, n)]."""
    u, _, vh = torch.linalg.svd(mean.float(), full_matrices=False)
    found: Tensor = u if mean.shape[0] < mean.shape[1] else vh.mT
    return found.to(mean).contiguous()


def turned(x: Tensor, q: Tensor) -> Tensor:
    """Return a matrix in the basis q: x q of a tall one, q' x of a wide one; by q' it is turned back."""
    return q.mT @ x if x.shape[0] < x.shape[1] else x @ q
