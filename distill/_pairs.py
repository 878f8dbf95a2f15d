"""The pair store: what a teacher's ODE makes of numbered noise, in shards that can be made in any order and resumed."""

from __future__ import annotations

from pathlib import Path

import torch

from gen import manifest as checkpoints
from gen.data.pairs import Pairs
from gen.errors import UserError
from gen.log import Progress
from gen.noise import sample_seeds
from gen.pipeline import Pipeline, locate
from gen.run import Sampler
from gen.spec import spec_of

__all__ = ["make_pairs"]

SHARD = 4096


def make_pairs(teacher: Pipeline, folder: Path, n: int, sampler: Sampler, seed: int = 1, quiet: bool = False) -> Pairs:
    """n pairs from `teacher`, sampled as `sampler` says, in `folder`; whole shards that are there already are kept.

    Noise i is that of sample seed i, so it is regenerated rather than stored (rf++, Lee et al. 2024, appendix). Labels
    are balanced. Raises UserError if the folder holds pairs of another teacher, sampler, seed or number.
    """
    parent = checkpoints.read(locate(teacher.folder), verify=False)["sha256"] if teacher.folder else None
    shards = -(-n // SHARD)
    about = {
        "parent": parent,
        "sampler": spec_of(sampler, named=False),
        "seed": seed,
        "n": n,
        "shards": shards,
        "shape": list(teacher.shape),
        "classes": teacher.classes,
    }
    progress = Progress("pairs", n, quiet=quiet)
    for k in range(shards):
        place, count = folder / f"shard-{k:05d}", min(SHARD, n - k * SHARD)
        if place.exists():
            there = checkpoints.read(place)
            differs = [key for key, value in about.items() if there.get(key) != value]
            if differs:
                raise UserError(f"{place} holds other pairs: {', '.join(differs)} differ. Choose another folder")
        else:
            made = teacher.sample(
                count,
                solver=sampler.solver,
                steps=sampler.steps,
                grid=sampler.grid,
                guide=sampler.guide,
                seed=seed,
                start=k * SHARD,
            )
            seeds = torch.tensor(sample_seeds(seed, count, k * SHARD))
            checkpoints.write(place, {"pairs.safetensors": {"x": made.x, **made.cond, "origin": seeds}}, about)
        progress.advance(count)
    progress.close()
    return Pairs(str(folder))
