"""Batch sizes by the norm test of adaptive gradient methods (AdAdaGrad, Lau et al. 2024, arXiv 2402.11215)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.training.objectives import Batch
from gen.training.run import Run
from gen.training.trainer import Trainer, train
from gen.training.tuning import check_parts, newest_run

__all__ = ["AdAdaGrad", "norm_test"]

GROUPS = 8  # micro-batches of a measurement, where a run has none of its own


def norm_test(gradients: Iterable[Tensor], size: int, eta: float) -> int:
    """Return the batch size that the norm test asks for: the least b with tr Var / b <= eta^2 |g|^2.

    Args:
        gradients: means over groups of samples, at least two, [P] each.
        size: samples of a group.
        eta: relative error of the gradient that is allowed, positive.
    """
    total, squares, n = torch.zeros(()), torch.zeros((), dtype=torch.float64), 0
    for gradient in gradients:
        values = gradient.double()
        total, squares, n = total + values, squares + values.square().sum(), n + 1
    norm = float((total / n).square().sum())
    variance = size * float(squares - n * norm) / (n - 1)
    return max(1, math.ceil(variance / (eta**2 * norm)))


@dataclass(frozen=True)
class AdAdaGrad:
    """A batch that grows where the gradients are too noisy: a plan of batches.

    After every so many steps the gradients of the next step's micro-batches are compared, and the batch becomes the
    least multiple of batch_size that passes the norm test; it never shrinks. Where a part of the training is there
    already, it goes on.

    Attributes:
        every: steps between two tests.
        eta: relative error of the gradient that is allowed, positive; the paper tries 0.1 to 0.9.
        largest: factor on the batch size.
    """

    every: int = 200
    eta: float = 0.5
    largest: int = 16

    def __post_init__(self) -> None:
        check_fields(self, every="[1, inf)", eta="(0, inf)", largest="[1, 1000000]")

    def tune(self, run: Run, out: Path, quiet: bool = False) -> Run:
        check_parts(run, self.every)
        if run.batch_size < 2 or run.micro_batch_size == run.batch_size:
            raise UserError("the norm test needs two micro-batches: a larger batch_size, or a smaller micro_batch_size")
        before = newest_run(out)
        plan, done = (before[0].batch_plan, before[1]) if before else (run.batch_plan, 0)
        for end in range(self.every, run.steps, self.every):
            if end >= done:
                part = replace(run, steps=end, batch_plan=plan)
                train(part, out, quiet=quiet)
                asked = self.measure(replace(part, steps=end + 1), out) / run.batch_size
                factor = min(self.largest, math.ceil(asked))
                if factor > plan.factor(end):
                    plan = plan.then(end, factor)
        planned = replace(run, batch_plan=plan)
        train(planned, out, quiet=quiet)
        return planned

    def measure(self, run: Run, folder: Path) -> int:
        """Return the batch size that the norm test asks for, of the gradients of the next step of a run folder.

        Args:
            run: whose newest checkpoint the folder holds, with a step still to be made.
            folder: of the run.
        """
        sizes = range(1, max(1, run.batch_size // GROUPS) + 1)
        micro = run.micro_batch_size or max(n for n in sizes if run.batch_size % n == 0)
        trainer = Trainer(replace(run, micro_batch_size=micro), folder, "auto", "", True)
        torch.manual_seed(run.seed)
        return norm_test((_gradient(trainer, batch) for batch in next(trainer.batches())), micro, self.eta)


def _gradient(trainer: Trainer, batch: Batch) -> Tensor:
    """Return the gradient of an objective's first loss, [P]."""
    with trainer.accelerator.autocast():
        named, loss, _ = next(iter(trainer.objective(trainer.roles, batch)))
    roles: Sequence[str] = (named,) if isinstance(named, str) else named
    parameters = [parameter for role in roles for parameter in trainer.parameters[role]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
