"""Learning rates by population-based training (Jaderberg et al. 2017, arXiv 1711.09846)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.writing import write_json
from gen.diffusion.noise import derive
from gen.training.run import Run
from gen.training.schedules import Constant, Steps
from gen.training.trainer import train
from gen.training.tuning import check_parts

__all__ = ["Population", "replacements"]


def replacements(losses: Sequence[float], share: float, chosen: Sequence[float]) -> dict[int, int]:
    """Return which members are replaced by truncation selection, and by which: the worst by some of the best.

    Args:
        losses: of the members.
        share: of the members that are replaced, and that are best, at most a half; at least one is.
        chosen: numbers in [0, 1) that choose among the best, one for each member.
    """
    order = sorted(range(len(losses)), key=lambda i: losses[i])
    count = max(1, int(share * len(losses)))
    return {worst: order[int(chosen[worst] * count)] for worst in order[-count:]}


@dataclass(frozen=True)
class Population:
    """Several trainings of a run that differ in their learning rates: a plan of rates.

    After every so many steps the members with the largest validation losses go on from the weights of the best, at a
    learning rate that is a little higher or lower. All have the run's seed, so that the best one's schedule alone gives
    its weights. A step costs as many as there are members.

    Attributes:
        every: steps between two selections.
        members: how many, at least 2; folders member-0, member-1, ... of the output.
        share: of the members that are replaced, and that are copied, in (0, 0.5]; the paper's 0.2.
        change: factor on a learning rate, or its inverse; above 1, the paper's 1.2 (and 0.8).
        spread: the first rates are drawn from lr / spread to lr spread, by logarithm; at least 1.
    """

    every: int = 200
    members: int = 4
    share: float = 0.2
    change: float = 1.2
    spread: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self, every="[1, inf)", members="[2, 10000]", share="(0, 0.5]", change="(1, inf)")
        check_fields(self, spread="[1, 1000000]")

    def tune(self, run: Run, out: Path, quiet: bool = False) -> Run:
        warmup = self._warmup(run, out)
        folders = [out / f"member-{i}" for i in range(self.members)]
        plans = [Steps(warmup, (), (self.spread ** (2 * u - 1),)) for u in self._draw(run, 0)]
        ends, ledger = [*range(self.every, run.steps, self.every), run.steps], []
        for number, end in enumerate(ends, 1):
            parts = [replace(run, steps=end, schedule=plan) for plan in plans]
            done = [train(part, folder, quiet=quiet) for part, folder in zip(parts, folders, strict=True)]
            losses = [float(result.val_loss or 0) for result in done]
            ledger.append({"step": end, "losses": losses, "rates": [part.learning_rate(end - 1) for part in parts]})
            write_json(out / "population.json", {"generations": ledger})
            if end < run.steps:
                higher = self._draw(run, -number)
                for worst, best in replacements(losses, self.share, self._draw(run, number)).items():
                    factor = plans[best].at(end) * (self.change if higher[worst] < 0.5 else 1 / self.change)
                    newest = checkpoints.newest(folders[best] / "checkpoints")
                    train(parts[best], folders[worst], resume=str(newest), quiet=quiet)
                    plans[worst] = plans[best].then(end, factor)
        winner = min(range(self.members), key=lambda i: losses[i])
        return parts[winner]

    def _draw(self, run: Run, number: int) -> list[float]:
        generator = torch.Generator().manual_seed(derive("population", run.seed, number))
        return list(torch.rand(self.members, generator=generator, dtype=torch.float64).tolist())

    def _warmup(self, run: Run, out: Path) -> int:
        """Return the warm-up of a run that a population can train; UserError for another."""
        check_parts(run, self.every)
        if not isinstance(run.schedule, Constant):
            raise UserError(f"a population finds the schedule: allowed is constant, not {type(run.schedule).__name__}")
        if not run.validate_every:
            raise UserError("members are compared by their validation losses: validate_every = 0; give another")
        if out.exists() and any(out.glob("member-*")):
            raise UserError(f"{out} already holds a population: choose another folder")
        return run.schedule.warmup
