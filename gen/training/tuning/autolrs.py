"""Learning rates by search, stage by stage (AutoLRS, Jin et al. 2021, arXiv 2105.10762)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.training.log import read_metrics
from gen.training.run import Run
from gen.training.schedules import Constant, Steps
from gen.training.trainer import train
from gen.training.tuning import check_parts, newest_run

__all__ = ["AutoLRS", "forecast", "next_rate"]

QUICKEST, SLOWEST, TRIED = 1.0, 0.01, 400  # decays of a loss: by step, and by the length of its series
CANDIDATES, LENGTH = 201, 0.3  # rates of a search; the Gaussian process's length, by the range of their logarithms


def forecast(losses: Sequence[float], step: int) -> float:
    """Forecast a loss by the curve a exp(b t) + c with b < 0 that fits its series best (section 4.2 of the paper).

    Least squares of the series itself, which the paper smooths by splines first.

    Args:
        losses: at t = 0, 1, ...; at least three.
        step: t of the forecast.
    """
    values = torch.tensor(losses, dtype=torch.float64)
    if not bool(values.isfinite().all()):
        return math.inf
    t = torch.arange(len(values), dtype=torch.float64)

    def fits(rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the squared residuals, a and c of decays [n]."""
        curves = torch.exp(-rates[:, None] * t)
        centred, rest = curves - curves.mean(1, keepdim=True), values - values.mean()
        a = (centred * rest).sum(1) / centred.square().sum(1).clamp(min=1e-300)
        return (a[:, None] * centred - rest).square().sum(1), a, values.mean() - a * curves.mean(1)

    low, high = math.log(SLOWEST / len(values)), math.log(QUICKEST)
    for _ in range(12):  # a finer grid around the best of the last
        rates = torch.linspace(low, high, TRIED, dtype=torch.float64).exp()
        residuals, a, c = fits(rates)
        best, width = int(residuals.argmin()), (high - low) / (TRIED - 1)
        low, high = math.log(rates[best]) - width, math.log(rates[best]) + width
    return float(a[best] * torch.exp(-rates[best] * step) + c[best])


def next_rate(tried: Sequence[float], values: Sequence[float], low: float, high: float, kappa: float) -> float:
    """Return the rate to try next: where the lower confidence bound of a Gaussian process is least.

    The process is of the logarithm of the rate, with a Matern 5/2 kernel; the first rate is the middle one.

    Args:
        tried: rates.
        values: their losses; infinite ones count as the largest finite one.
        low, high: the range of the rates.
        kappa: how many standard deviations the bound lies below the mean.
    """
    grid = torch.linspace(math.log(low), math.log(high), CANDIDATES, dtype=torch.float64)
    if not tried:
        return math.exp(grid[CANDIDATES // 2])
    x, y = torch.tensor(tried, dtype=torch.float64).log(), torch.tensor(values, dtype=torch.float64)
    finite = y[y.isfinite()]
    y = torch.where(y.isfinite(), y, finite.max()) if len(finite) else torch.zeros_like(y)
    y = (y - y.mean()) / y.std(correction=0).clamp(min=1e-12)
    scale = LENGTH * max(math.log(high / low), 1e-12)

    def kernel(one: Tensor, two: Tensor) -> Tensor:
        d = math.sqrt(5) * (one[:, None] - two).abs() / scale
        return (1 + d + d.square() / 3) * torch.exp(-d)

    weights = torch.linalg.solve(kernel(x, x) + 1e-8 * torch.eye(len(x), dtype=torch.float64), kernel(x, grid))
    deviation = (1 - (weights * kernel(x, grid)).sum(0)).clamp(min=0).sqrt()
    return math.exp(grid[int((y @ weights - kappa * deviation).argmin())])


@dataclass(frozen=True)
class AutoLRS:
    """A constant learning rate for each stage, the best of some that were tried: a plan of rates.

    A stage twice as long as the one before begins with a search: from the same checkpoint a share of the stage is
    trained at each rate, and the rate is kept whose loss, forecast to the stage's end, is least. With ten tries of a
    tenth a search costs as much as the training. Where a part of the training is there already, it goes on.

    Attributes:
        first: steps of the first stage; the paper's 1000.
        longest: steps of a stage at most; the paper's 8000.
        tries: rates of a search, at least 1; the paper's 10.
        share: of a stage that each is tried for, in (0, 1]; the paper's 0.1.
        low, high: the range of rates, as factors on the run's learning rate.
        kappa: see next_rate; the public code's 1e6 spreads the rates over the range.
    """

    first: int = 1000
    longest: int = 8000
    tries: int = 10
    share: float = 0.1
    low: float = 0.01
    high: float = 10.0
    kappa: float = 1e6

    def __post_init__(self) -> None:
        check_fields(self, first="[1, inf)", longest="[1, inf)", tries="[1, 1000]", share="(0, 1]", kappa="[0, inf)")
        check_fields(self, low="(0, inf)", high="(0, inf)")
        if self.low > self.high:
            raise UserError(f"AutoLRS: low = {self.low} is above high = {self.high}")

    def tune(self, run: Run, out: Path, quiet: bool = False) -> Run:
        if not isinstance(run.schedule, Constant):
            raise UserError(f"autolrs finds the schedule: allowed is constant, not {type(run.schedule).__name__}")
        check_parts(run, self.first)
        before = newest_run(out)
        done, known = (before[1], before[0].schedule) if before else (0, None)
        plan, part = Steps(run.schedule.warmup), run
        for start, end in self.stages(run.steps):
            if start < done and isinstance(known, Steps):
                plan = known.until(end)
            else:
                plan = self._search(run, plan, out, start, end)
            part = replace(run, steps=end, schedule=plan)
            if end >= done:
                train(part, out, quiet=quiet)
        return part

    def stages(self, steps: int) -> list[tuple[int, int]]:
        """Return where the stages of a run of so many steps begin and end."""
        ends, length = [0], self.first
        while ends[-1] < steps:
            ends.append(min(ends[-1] + length, steps))
            length = min(2 * length, self.longest)
        return list(pairwise(ends))

    def _search(self, run: Run, plan: Steps, out: Path, start: int, end: int) -> Steps:
        """Return the plan with the best rate from `start` to `end`; the newest checkpoint of `out` is of `start`."""
        tried, losses = list[float](), list[float]()
        out.parent.mkdir(parents=True, exist_ok=True)
        steps = start + max(3, round(self.share * (end - start)))
        for _ in range(self.tries):
            rate = next_rate(tried, losses, self.low, self.high, self.kappa)
            given = plan.then(start, rate) if start else replace(plan, factors=(rate,))
            every: Json = {"log_every": 1, "validate_every": 0, "sample_every": 0, "save_every": 0, "trackers": ()}
            probe = replace(run, steps=steps, schedule=given, **every)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
                losses.append(_loss(probe, Path(folder) / "probe", str(out) if start else "never", start, end))
            tried.append(rate)
        if not math.isfinite(min(losses)):
            rates = f"{run.optim.lr * self.low:g} to {run.optim.lr * self.high:g}"
            raise NonFinite(f"step {start}: with no learning rate from {rates} a loss stays finite")
        rate = tried[losses.index(min(losses))]
        return plan.then(start, rate) if start else replace(plan, factors=(rate,))


def _loss(probe: Run, folder: Path, resume: str, start: int, end: int) -> float:
    """Return the loss that a run would have at `end`, forecast from its own steps; infinite for one that breaks off."""
    try:
        train(probe, folder, resume=resume, quiet=True)
    except NonFinite:
        return math.inf
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row.get("split") == "train"]
    return forecast(losses, end - start - 1)
