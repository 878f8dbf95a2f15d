"""UniPC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.exponential import Node, add, base, integrals, remember, usable

__all__ = ["UniPC"]


class State(NamedTuple):
    """What the corrector redoes: the last step's first-order part `move`, and the values its rule went through."""

    history: tuple[Node, ...] = ()
    move: Tensor | None = None
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True)
class UniPC:
    """UniPC of x0: a multistep predictor, and a corrector that redoes the last step with the evaluation made at its end
    and so costs nothing (Zhao et al. 2023, algorithms 1 and 2).

    solver_order: 1, 2 or 3, the predictor's; the corrector adds one to the order. kind: B(h) = h or e^h - 1, which tell
    apart only the two rules that the paper shortens (its remark after theorem 3.1): first corrector, second predictor.
    """

    solver_order: int = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"UniPC: solver_order = {self.solver_order}; allowed: 1, 2, 3")

    @property
    def order(self) -> int:
        return self.solver_order + self.corrector

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> State:
        return State()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), base(path, x, pred, t))
        move = path.interpolate(pred, s)
        if s == 0:
            return move, State()
        if self.corrector and state.move is not None and math.isfinite(state.nodes[0].lam):
            corrected = self.correct(state, here, float(path.alpha(t)))
            move = torch.add(move, corrected - x, alpha=float(path.sigma(s) / path.sigma(t)))
        nodes = usable(here, state.history, self.solver_order)
        if len(nodes) == 1:
            out = move
        else:
            out = add(move, self.predictor(nodes, float(path.lam(s)), float(path.alpha(s))), nodes)
        return out, State(remember(here, state.history, self.solver_order - 1), move, nodes)

    def correct(self, state: State, here: Node, alpha: float) -> Tensor:
        """x at the end of the last step, `here`, redone with the value found there."""
        assert state.move is not None
        nodes = (*state.nodes, here)
        start = nodes[0].lam
        weights = [0.0, self.b(here.lam - start) / 2] if len(nodes) == 2 else integrals(nodes, start, here.lam)
        return add(state.move, [alpha * w for w in weights], nodes)

    def predictor(self, nodes: tuple[Node, ...], end: float, alpha: float) -> list[float]:
        h = end - nodes[0].lam
        if len(nodes) == 2:
            return [0.0, alpha * self.b(h) / 2 * h / (nodes[1].lam - nodes[0].lam)]
        return [alpha * w for w in integrals(nodes, nodes[0].lam, end)]

    def b(self, h: float) -> float:
        return h if self.kind == "bh1" else -math.expm1(-h)
