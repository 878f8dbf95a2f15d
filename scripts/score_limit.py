"""How much mass in wrong modes a learned score cannot see: why students of scores stop where they do.

python scripts/score_limit.py [--seed 0]

The world is that of scripts/mixture_students.py: eight Gaussians on a circle. If their weights are wrong by a relative
error d, a wave once around the circle with a root mean square of d, then

- the exact denoiser changes in closed form: x0(x, t) = sum_k r_k m_k with the posterior r_k of mode k and its posterior
  mean m_k, and d x0 / d(log w_k) = r_k (m_k - x0). Its root mean square over x_t, per unit of d, is the sensitivity.
- samples of the wrong law are at a sliced W2 of about 1.3 d from the right one.

A student of scores is at rest where the learned score of its samples and the teacher's agree. A learned score whose
error is e therefore cannot tell mass errors below e / sensitivity from none.

Measured (2026-11-30, two cores of an AMD EPYC, torch 2.13, 3 minutes): a sliced W2 of 0.004, 0.014, 0.026, 0.037 of
20,000 samples for d = 0, 0.01, 0.02, 0.03. At t = 0.2, 0.35, 0.5, 0.65, 0.8 the network of the students' size, trained
on the data themselves (4000 updates), is wrong by 0.010, 0.017, 0.013, 0.013, 0.016, the sensitivity is 0.037, 0.157,
0.375, 0.555, 0.660, and so d = 0.28, 0.11, 0.034, 0.023, 0.025 is hidden. The best level hides 0.023: a sliced W2 of
0.029, which is where dmd2 (0.025) and f_distill by JS (0.028) stand. For the 0.024 that is 1.5 times the teacher's 50
Euler steps the error would have to be below 0.010 there.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from gen.diffusion.worlds import Mixture
from scripts.mixture_students import DATA, Points, Workshop, denoiser, plans, sliced_wasserstein

TIMES = (0.2, 0.35, 0.5, 0.65, 0.8)


def wave(world: Mixture) -> Tensor:
    """Return a relative error of the modes' weights, once around the circle, of root mean square 1 [modes]."""
    return math.sqrt(2) * torch.cos(2 * math.pi * torch.arange(DATA.modes, dtype=torch.float64) / DATA.modes)


def sensitivity(world: Mixture, x: Tensor, t: float) -> float:
    """Return the root mean square over x_t [N, 2] of the exact x0's change per unit of the wave."""
    alpha, sigma = 1 - t, t
    offset = x[:, None] - alpha * world.means  # [N, modes, 2]
    variance = alpha**2 * DATA.std**2 + sigma**2
    posterior = torch.softmax(world.weights.log() - offset.square().sum(-1) / (2 * variance), 1)[..., None]
    means = world.means + alpha * DATA.std**2 / variance * offset
    x0 = (posterior * means).sum(1, keepdim=True)
    change = (posterior * wave(world)[:, None] * (means - x0)).sum(1)
    return float(change.square().mean().sqrt())


def wrong_samples(world: Mixture, error: float, n: int, seed: int) -> Tensor:
    """Return samples [about n, 2] of the mixture whose weights are wrong by the wave times `error`."""
    weights = world.weights * (1 + error * wave(world))
    generator = torch.Generator().manual_seed(seed)
    mode = torch.arange(DATA.modes).repeat_interleave((weights * n).round().long())
    return world.means[mode] + DATA.std * torch.randn(len(mode), 2, generator=generator, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher, generator = Points(), torch.Generator().manual_seed(args.seed)
    learned = denoiser(Workshop(args.seed).student("denoise", plans())[0])
    x0 = teacher.draw(20_000, args.seed)
    eps = torch.randn(x0.shape, generator=generator)
    print("sliced W2 of 20,000 samples whose weights are wrong by d:")
    for error in (0.0, 0.01, 0.02, 0.03):
        distance = sliced_wasserstein(wrong_samples(teacher.world, error, 20_000, args.seed), teacher.world)
        print(f"  d {error:.2f}: {distance:.4f}")
    print("t, error e of the learned x0, sensitivity, mass error that e hides:")
    for t in TIMES:
        times = torch.full((len(x0),), t)
        x = learned.path.mix(x0, eps, times)
        with torch.no_grad():
            error = float((learned(x, times, {}).x0 - teacher(x, times).x0).square().mean().sqrt())
        change = sensitivity(teacher.world, x.flatten(1).double(), t)
        print(f"  {t:.2f}: {error:.4f}, {change:.3f}, {error / change:.4f}", flush=True)


if __name__ == "__main__":
    main()
