"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from gen.config.fields import check_fields
from gen.training.optim import decouple_weight_decay

__all__ = ["Lion", "LionOptimizer"]


@dataclass(frozen=True)
class Lion:
    """Sign momentum with decoupled weight decay (Chen et al. 2023, arXiv 2302.06675, alg. 2): one moment, not two.

    p <- (1 - lr weight_decay) p - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g.

    Attributes:
        lr: peak learning rate, 3 to 10 times smaller than AdamW's; the paper's for diffusion, beside AdamW's 3e-4.
        betas: b1, b2, as published.
        weight_decay: as many times larger than AdamW's; 0.1 in the paper beside AdamW's 0.01.
    """

    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, lr="(0, 1000]", betas="[0, 1)", weight_decay="[0, inf)")

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        groups = decouple_weight_decay(parameters, self.weight_decay)
        return LionOptimizer(groups, {"lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay})


class LionOptimizer(torch.optim.Optimizer):
    """Lion as a torch optimiser; its state is "exp_avg", shaped as the parameter.

    Args:
        params, defaults: as of torch.optim.Optimizer; defaults has "lr", "betas" and "weight_decay".
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            for p in updated:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            lr, (b1, b2) = group["lr"], group["betas"]
            grads, momenta = [p.grad for p in updated], [self.state[p]["exp_avg"] for p in updated]
            torch._foreach_mul_(updated, 1 - lr * group["weight_decay"])
            signs = torch._foreach_sign(torch._foreach_lerp(momenta, grads, 1 - b1))
            torch._foreach_add_(updated, signs, alpha=-lr)
            torch._foreach_lerp_(momenta, grads, 1 - b2)
        return loss
