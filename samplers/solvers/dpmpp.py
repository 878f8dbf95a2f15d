"""DPM-Solver++, multistep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.exponential import History, Multistep, Node, add_corrections, data_prediction, integrals

__all__ = ["DPMpp", "correction_weights"]


@dataclass(frozen=True)
class DPMpp(Multistep):
    """DPM-Solver++(1M, 2M, 3M), the exponential integrator of x0 in lam (Lu et al. 2022, algorithm 2).

    The first steps, and any step from or to an infinite log-SNR, are of lower order.

    Attributes:
        solver_order: 1, 2 or 3 values of x0.
        kind: the midpoint or the Heun form of the second order.
        compat: "diffusers" leaves out, as all published code does, a factor of 2 before the third order's second
            difference, which makes it second order only.
    """

    kind: Literal["midpoint", "heun"] = "midpoint"
    compat: Literal["diffusers"] | None = None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: History, noise: DrawNoise
    ) -> tuple[Tensor, History]:
        pred = f(x, t)
        out = path.interpolate(pred, s)
        if self.solver_order == 1:
            return out, ()
        here = Node(float(path.lam(t)), data_prediction(path, x, pred, t))
        nodes, lam = self.usable_history(here, state), float(path.lam(s))
        if len(nodes) > 1 and math.isfinite(lam):
            alpha = float(path.alpha(s))
            weights = [alpha * w for w in correction_weights(nodes, lam, self.kind, bool(self.compat))]
            out = add_corrections(out, weights, nodes)
        return out, self.push_history(here, state)


def correction_weights(nodes: History, end: float, kind: str, published: bool, rate: float = 1.0) -> list[float]:
    """Return the weight, over alpha_s, of each value's difference from the newest one in a step to lam = end.

    Args:
        nodes: the newest values of x0, 2 or 3.
        end: half log-SNR at the step's end.
        kind, published: as `kind` and `compat` of DPMpp.
        rate: 1 for the ODE, 1 + eta for the SDE.
    """
    h = end - nodes[0].lam
    if len(nodes) == 2 and kind == "midpoint":
        return [0.0, math.expm1(-rate * h) / 2 * h / (nodes[0].lam - nodes[1].lam)]
    weights = [rate * w for w in integrals(nodes, nodes[0].lam, end, rate)]
    if len(nodes) == 3 and published:
        phi = (math.expm1(-rate * h) / (rate * h) + 1) / (rate * h) - 0.5  # half of the second difference's share
        spans = nodes[0].lam - nodes[1].lam, nodes[1].lam - nodes[2].lam
        second = [0.0, -1 / (spans[0] * spans[1]), 1 / (spans[1] * sum(spans))]  # divided differences of (D1, D2)
        weights = [w + phi * h**2 * d for w, d in zip(weights, second, strict=True)]
    return weights
