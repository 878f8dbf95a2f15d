"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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

    Like torch's fused optimisers it looks at attributes that gradient scaling sets: with `found_inf` 1 a step does
    nothing, without the host knowing, and gradients are divided by `grad_scale`.

    Args:
        params, defaults: as of torch.optim.Optimizer; defaults has "lr", "betas" and "weight_decay".
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        scale: Tensor | None = getattr(self, "grad_scale", None)
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            for p in updated:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            lr, (b1, b2) = group["lr"], group["betas"]
            grads, momenta = [p.grad for p in updated], [self.state[p]["exp_avg"] for p in updated]
            grads = grads if scale is None else [grad / scale for grad in grads]
            signs = torch._foreach_lerp(momenta, grads, 1 - b1)
            torch._foreach_sign_(signs)
            new = torch._foreach_mul(updated, 1 - lr * group["weight_decay"])
            torch._foreach_add_(new, signs, alpha=-lr)
            self._write(updated, new)
            self._write(momenta, torch._foreach_lerp(momenta, grads, 1 - b2))
        return loss

    def _write(self, tensors: list[Tensor], new: Sequence[Tensor]) -> None:
        held: Tensor | None = getattr(self, "found_inf", None)
        for tensor, value in zip(tensors, new, strict=True):  # shards have no _foreach_copy_
            tensor.copy_(value if held is None else torch.where(held > 0, tensor, value))
