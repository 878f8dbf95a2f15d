"""FRUGAL: Adam for a part of the numbers at a time, and signs of gradients for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from gen.config.fields import check_fields
from gen.diffusion.noise import derive
from gen.training.optim import decouple_weight_decay

__all__ = ["Frugal", "FrugalOptimizer"]


@dataclass(frozen=True)
class Frugal:
    """Moments for a share of the matrices alone, drawn anew again and again (Zmushko et al. 2024, arXiv 2411.07837).

    Every `gap` steps a share of the numbers in matrices is drawn, of whole matrices in a random order or of columns in
    each, and begins with moments of 0; matrices that stay keep theirs. It is trained by AdamW, the rest by
    p <- (1 - lr weight_decay) p - lr rest_scale sign(g). Parameters of other dimensions always have moments.

    Attributes:
        lr: peak learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        density: the share; 1 is AdamW, and 0 signs alone.
        gap: steps between two draws.
        by: "matrices" or "columns".
        rest: "sign", or "none" for parameters that wait, as in BAdam (matrices).
        rest_scale: of their rate; 1 in pretraining, 0.1 in fine-tuning.
        seed: of the draws.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    density: float = 0.25
    gap: int = 200
    by: Literal["matrices", "columns"] = "matrices"
    rest: Literal["sign", "none"] = "sign"
    rest_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {"eps": "(0, inf)", "rest_scale": "(0, inf)", "gap": "[1, inf)", "seed": "[0, inf)"}
        check_fields(self, lr="(0, 1000]", betas="[0, 1)", weight_decay="[0, inf)", density="[0, 1]", **positive)

    def build(self, parameters: ParamsT) -> torch.optim.Optimizer:
        groups = decouple_weight_decay(parameters, self.weight_decay)
        return FrugalOptimizer([{**group, "steps": 0} for group in groups], {"lr": self.lr}, self)


class FrugalOptimizer(torch.optim.Optimizer):
    """FRUGAL as a torch optimiser; its state are "step", "exp_avg" and "exp_avg_sq" of what has moments now.

    Args:
        params, defaults: as of torch.optim.Optimizer; each group counts its "steps".
        spec: the hyperparameters.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], spec: Frugal):
        super().__init__(params, defaults)
        self.spec = spec

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for place, group in enumerate(self.param_groups):
            draw, begins = divmod(group["steps"], self.spec.gap)
            chosen = self._chosen(group["params"], derive("frugal", self.spec.seed, place, draw))
            if begins == 0:
                self._begin(chosen)
            self._update(group, [(p, where) for p, where in chosen if p.grad is not None])
            group["steps"] += 1
        return loss

    def _chosen(self, params: list[Tensor], seed: int) -> list[tuple[Tensor, Tensor | bool]]:
        """Return every parameter with whether it has moments, or the columns [n] that have."""
        spec, generator = self.spec, torch.Generator().manual_seed(seed)
        matrices = [p for p in params if p.ndim == 2]
        if spec.by == "columns":
            n = {p: p.shape[1] for p in matrices}
            order = {p: torch.randperm(n[p], generator=generator) for p in matrices}
            return [
                (p, order[p][: round(spec.density * n[p])].sort().values.to(p.device) if p.ndim == 2 else True)
                for p in params
            ]
        room, inside = spec.density * sum(p.numel() for p in matrices), set()
        for i in torch.randperm(len(matrices), generator=generator).tolist():
            if matrices[i].numel() <= room + 0.5:
                inside.add(matrices[i])
                room -= matrices[i].numel()
        return [(p, p.ndim != 2 or p in inside) for p in params]

    def _begin(self, chosen: list[tuple[Tensor, Tensor | bool]]) -> None:
        """Forget what has moments no longer."""
        for p, where in chosen:
            if where is False or isinstance(where, Tensor):
                self.state.pop(p, None)

    def _update(self, group: dict[str, Any], chosen: list[tuple[Tensor, Tensor | bool]]) -> None:
        spec, parts = self.spec, list[tuple[Tensor, Tensor, Any, Any]]()
        for p, where in chosen:
            grad: Any = p.grad
            if where is not True and spec.rest == "sign":
                rest = torch.full_like(grad, spec.rest_scale)
                if where is not False:
                    rest[:, where] = 0
                decay = group["lr"] * group["weight_decay"] * rest.sign()
                p.mul_(1 - decay).sub_(grad.sign() * rest, alpha=group["lr"])
            if where is True:
                parts.append((p, p, grad, where))
            elif isinstance(where, Tensor) and len(where):
                parts.append((p, p[:, where], grad[:, where], where))
        if not parts:
            return
        states = [self._state(p, own) for p, own, _, _ in parts]
        adamw(
            [own for _, own, _, _ in parts], [grad for _, _, grad, _ in parts],
            [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states],
            foreach=True, amsgrad=False, beta1=spec.betas[0], beta2=spec.betas[1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=spec.eps, maximize=False,
        )  # fmt: skip
        for p, own, _, where in parts:
            if isinstance(where, Tensor):
                p[:, where] = own

    def _state(self, p: Tensor, own: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            moments = {name: torch.zeros_like(own) for name in ("exp_avg", "exp_avg_sq")}
            state |= {"step": torch.tensor(0.0), **moments}
        return state
