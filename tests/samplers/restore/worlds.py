"""The Gaussian world of the methods' laws, in which the posterior is known, and two problems of measurement in it.

It has the covariance C diag(1, .6, .3, .15, .08, .04) C', C the DCT-II. In the first problem means of pairs are
measured with noise .1, in the second three of six numbers without noise.
"""

import math

import torch

from gen.diffusion.moments import affine_moments
from gen.diffusion.path import EDM
from gen.diffusion.worlds import Correlated
from gen.operators.matrix import Matrix

D = 6
DCT = torch.tensor(
    [[(2 / D) ** 0.5 * math.cos(math.pi * (n + 0.5) * k / D) * (0.5**0.5 if k == 0 else 1) for k in range(D)]
     for n in range(D)], dtype=torch.float64
)  # fmt: skip
SPREAD = torch.tensor([1, 0.6, 0.3, 0.15, 0.08, 0.04], dtype=torch.float64)
MEAN = torch.tensor([0.5, -0.3, 0.2, 0, -0.4, 0.1], dtype=torch.float64)
PAIRS = torch.block_diag(*[torch.full((1, 2), 0.5, dtype=torch.float64)] * 3)
FIRST = torch.eye(3, D, dtype=torch.float64)
PROBLEMS = {
    "pairs": (PAIRS, torch.tensor([0.4, -0.2, 0.3], dtype=torch.float64), 0.1),
    "known": (FIRST, torch.tensor([0.9, -0.1, 0.4], dtype=torch.float64), 0.0),
}


def world(path=None, covariance=None):
    covariance = DCT @ torch.diag(SPREAD) @ DCT.mT if covariance is None else covariance
    return Correlated(path or EDM(80.0), MEAN, covariance)


def operator(A):
    return Matrix(tuple(map(tuple, A.tolist()))).on((A.shape[1],))


def moments(method, problem, prior=None, draws=None):
    """Mean and covariance of a method's samples.

    Args:
        method: the method.
        problem: name of one of PROBLEMS, or (A, y, noise).
        prior: None for the world.
        draws: names of all its noise; None for the start and one in each step.
    """
    (A, y, _), prior = PROBLEMS[problem] if isinstance(problem, str) else problem, prior or world()
    on, size = operator(A), A.shape[1]
    return affine_moments(
        lambda rows, noise: method.restore(prior, y.expand(rows, -1), on, (rows, size), noise),
        size, ["start", *range(method.steps)] if draws is None else draws,
    )  # fmt: skip


def compared(method, problem, prior=None, draws=None):
    """Error of the mean in posterior deviations, ratio of the traces, least and largest ratio of variances."""
    A, y, noise = PROBLEMS[problem]
    truth, (mean, covariance) = (prior or world()).posterior(A, y, noise), moments(method, problem, prior, draws)
    part = slice(3, None) if problem == "known" else slice(None)
    mean, covariance, right, spread = mean[part], covariance[part, part], truth.mean[part], truth.covariance[part, part]
    wrong, L = mean - right, torch.linalg.cholesky(spread)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve(L, torch.linalg.solve(L, covariance).mT))
    e = (wrong @ torch.linalg.solve(spread, wrong) / len(wrong)).sqrt()
    return [float(v) for v in (e, covariance.trace() / spread.trace(), ratios.min(), ratios.max())]
