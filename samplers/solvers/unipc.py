"""UniPC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.exponential import History, Multistep, Node, add_corrections, data_prediction, integrals

__all__ = ["UniPC"]


class State(NamedTuple):
    """History, and the parts of the last step that the corrector uses again.

    Attributes:
        history: values of x0, newest first.
        first_order: the last step's first-order part, [B, ...]; None before the first step.
        nodes: the values that the last step interpolated.
    """

    history: History = ()
    first_order: Tensor | None = None
    nodes: History = ()


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC of x0: a multistep predictor, and a corrector without evaluations (Zhao et al. 2023, algorithms 1 and 2).

    The corrector redoes the last step with the evaluation made at its end, and adds one to the rule's order.

    Attributes:
        solver_order: 1, 2 or 3, the predictor's.
        kind: B(h) = h or e^h - 1, which differ only in the two rules that the paper shortens (its remark after theorem
            3.1): first corrector, second predictor.
        corrector: False for the predictor alone.
    """

    kind: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True

    @property
    def order(self) -> int | None:
        return min(self.solver_order + self.corrector, 2)

    def init(self) -> State:
        return State()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: DrawNoise
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), data_prediction(path, x, pred, t))
        first_order = path.interpolate(pred, s)
        if s == 0:
            return first_order, State()
        if self.corrector and state.first_order is not None and math.isfinite(state.nodes[0].lam):
            corrected = self.correct(state.first_order, (*state.nodes, here), float(path.alpha(t)))
            first_order = torch.add(first_order, corrected - x, alpha=float(path.sigma(s) / path.sigma(t)))
        nodes, out = self.usable_history(here, state.history), first_order
        if len(nodes) > 1:
            out = add_corrections(out, self.weights(nodes, float(path.lam(s)), float(path.alpha(s))), nodes)
        return out, State(self.push_history(here, state.history), first_order, nodes)

    def correct(self, first_order: Tensor, nodes: History, alpha: float) -> Tensor:
        """Return x at the end of the last step, redone with the value found there, the last of the nodes."""
        start, end = nodes[0].lam, nodes[-1].lam
        weights = [0.0, self.b(end - start) / 2] if len(nodes) == 2 else integrals(nodes, start, end)
        return add_corrections(first_order, [alpha * w for w in weights], nodes)

    def weights(self, nodes: History, end: float, alpha: float) -> list[float]:
        """Return the predictor's weights of the nodes in a step to lam = end."""
        h = end - nodes[0].lam
        if len(nodes) == 2:
            return [0.0, alpha * self.b(h) / 2 * h / (nodes[1].lam - nodes[0].lam)]
        return [alpha * w for w in integrals(nodes, nodes[0].lam, end)]

    def b(self, h: float) -> float:
        """Return the paper's B(h)."""
        return h if self.kind == "bh1" else -math.expm1(-h)
