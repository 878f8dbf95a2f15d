"""Inpainting by resampling: what is known is put in at every level, and the loop goes up and down again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.operators.lib.operator import Operator
from gen.samplers.grids.karras import Karras
from gen.samplers.restore.lib.restorer import Restorer
from gen.samplers.solvers.ancestral import Ancestral

__all__ = ["RePaint", "trajectory"]


@dataclass(frozen=True)
class RePaint(Restorer):
    """Ancestral steps after which A x_s becomes A (alpha_s A+ y + sigma_s z), z fresh (Lugmayr et al. 2022, RePaint).

    So much is known of x_s where A x is known without noise; of inpainting, the known pixels. What is generated learns
    of it in the next step only, so the loop jumps back up to noise and comes down again. With one sample at each level
    it is ILVR's rule, and for Gaussian data the posterior is reached as repeats and steps grow.

    Attributes:
        noise: must be 0.
        steps: of the grid; 250 as published. The network is evaluated about `repeats` times as often.
        jump: steps of a jump; 10 as published. 1 repeats every step.
        repeats: how often each stretch of `jump` steps is done; 10 as published, 1 for no jumps.
        grid: its times.
    """

    noise: float = 0.0
    steps: int = 250
    jump: int = 10
    repeats: int = 10
    grid: Grid = part("samplers.grids", default=Karras())

    def __post_init__(self) -> None:
        check_fields(self, noise="[0, inf)", steps="[1, inf)", jump="[1, inf)", repeats="[1, inf)")
        if self.noise:
            raise UserError(f"RePaint: noise = {self.noise}; it takes measurements without noise: take pigdm or ddrm")

    @torch.no_grad()
    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Operator,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        if not operator.linear:
            raise UserError(f"repaint measures noise beside samples, and {operator!r} is not linear: take dps")
        path, times, f = denoise.path, self.grid.times(denoise.path, self.steps), partial(denoise, cond=cond)

        def draw(name: int | str) -> Tensor:
            return noise.normal(name, shape[1:]).to(y)

        x, known = path.start(draw("start"), times[0]), operator.pinv(y)
        for i, (a, b) in enumerate(itertools.pairwise(trajectory(self.steps, self.jump, self.repeats))):
            if b < a:
                x = path.diffuse(x, draw(i), times[b], times[a])
                continue
            x, _ = Ancestral().step(f, path, x, times[a], times[b], None, partial(draw, i))
            x = x + operator.pinv(operator.A(path.mix(known, draw(f"known {i}"), times[b]) - x))
        return x


def trajectory(steps: int, jump: int, repeats: int) -> Iterator[int]:
    """Yield the indices of a grid's times in the order of their visits, from 0 to `steps`.

    Before the last step, and before all at multiples of `jump` from it, the loop goes `jump` indices back, one less
    than `repeats` times.

    Args:
        steps: of the grid.
        jump: indices of a jump.
        repeats: visits of each such time.
    """
    yield 0
    at, left = 0, dict.fromkeys(range(steps - 1, jump - 1, -jump), repeats - 1)
    while at < steps:
        at += 1
        yield at
        if left.get(at):
            left[at] -= 1
            at -= jump
            yield at
