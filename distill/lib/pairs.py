"""The pair store: what a teacher's ODE makes of numbered noise, in shards that can be made in any order and resumed.

Or the other way: what noise it makes of data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.data.pairs import Pairs
from gen.diffusion.denoiser import Cond
from gen.diffusion.noise import Noise, derive, sample_seeds
from gen.distillers.lib.shards import SHARD, fill_shards
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.trajectory import invert
from gen.pipeline import Pipeline, load, locate
from gen.training.objectives import Batch
from gen.training.run import Run, Sampler, run_from

__all__ = ["invert_pairs", "make_pairs", "noise_of", "pairs_of", "real_run"]

CLEAN = 1e-3  # sigma / alpha of the noise that data get before they are inverted, as rf++ has it
BATCH = 250  # of an inversion


def pairs_of(run: Run, teacher: Path, folder: Path, n: int, sampler: Sampler, store: str | None, real: bool) -> Pairs:
    """What a method trains on: n pairs of the teacher, made in folder/pairs, or in `store`, unless they are there.

    real: data of the teacher's, and the noise that its ODE makes of them, instead of noise and what it makes of that.
    """
    place, taught = Path(store) if store else folder / "pairs", load(teacher)
    if real:
        return invert_pairs(taught, real_run(run).data, place, sampler, n)
    return make_pairs(taught, place, n, sampler)


def make_pairs(
    teacher: Pipeline,
    folder: Path,
    n: int,
    sampler: Sampler,
    seed: int = 1,
    quiet: bool = False,
    shard: int = SHARD,
    part: tuple[int, int] = (0, 1),
) -> Pairs:
    """n pairs from `teacher`, sampled as `sampler` says, in `folder`; whole shards that are there already are kept.

    Noise i is that of sample seed i, so it is regenerated rather than stored (rf++, Lee et al. 2024, appendix). Labels
    are balanced. part: (k, m) makes every m-th shard from the k-th on, for m machines that share the folder. Raises
    UserError if the folder holds pairs of another teacher, sampler, seed, number or shard size.
    """

    def made(first: int, count: int) -> dict[str, Tensor]:
        out = replace(teacher, sampler=sampler).sample(count, seed=seed, start=first)
        return {"x": out.x, **out.cond, "origin": torch.tensor(sample_seeds(seed, count, first))}

    return _store(
        teacher, folder, n, {"sampler": spec_of(sampler, named=False), "seed": seed}, made, quiet, shard, part
    )


def invert_pairs(
    teacher: Pipeline,
    data: Any,
    folder: Path,
    sampler: Sampler,
    n: int | None = None,
    seed: int = 1,
    quiet: bool = False,
    shard: int = SHARD,
    part: tuple[int, int] = (0, 1),
) -> Pairs:
    """Training items of `data` and the noise that the teacher's ODE makes of them (rf++'s real data, section 4.3).

    n: at most so many items, in an order of the seed's; None for all. The noise is stored, unit like any other, so
    that the sampler leads from it back to the item as well as it can. Otherwise as make_pairs.
    """
    if sampler.cache is not None:
        raise UserError(f"teacher_sampler.cache = {sampler.cache!r}: an inversion reuses no features; leave it out")
    opened = data.open("train")
    generator = torch.Generator().manual_seed(derive("invert", seed))
    order = torch.randperm(len(opened), generator=generator)[: n or len(opened)].tolist()

    def made(first: int, count: int) -> dict[str, Tensor]:
        items = torch.utils.data.default_collate([opened[i] for i in order[first : first + count]])
        x, cond = items["x"], {k: v for k, v in items.items() if k != "x"}
        noise = Noise(tuple(sample_seeds(seed, count, first)))
        parts = [
            _noise_below(teacher, x[i : i + BATCH], cond, Noise(noise.seeds[i : i + BATCH]), sampler, i)
            for i in range(0, count, BATCH)
        ]
        return {"x": x, **cond, "noise": torch.cat(parts)}

    about = {"sampler": spec_of(sampler, named=False), "seed": seed, "inverted": opened.fingerprint}
    return _store(teacher, folder, len(order), about, made, quiet, shard, part)


@torch.no_grad()
def _noise_below(teacher: Pipeline, x: Tensor, cond: Cond, noise: Noise, sampler: Sampler, first: int) -> Tensor:
    """The unit noise of which the teacher's ODE makes x [B, ...], rows `first` on of the condition."""
    path, device = teacher.denoiser.path, teacher.device
    times = sampler.grid.times(path, sampler.steps)
    low = path.t_from_lambda(-torch.tensor(CLEAN, dtype=torch.float64).log()).clamp(max=float(times[-2]) / 2)
    times = torch.cat([times[:-1], low[None]])
    f = guided_teacher(teacher.denoiser, path, sampler.guide, times)
    here = {k: v[first : first + len(x)].to(device) for k, v in cond.items()}
    stirred = path.mix(x.to(device), noise.normal("invert", x.shape[1:]).to(device), low)
    return (invert(f, stirred, times, sampler.solver, here) / float(path.sigma(times[0]))).float().cpu()


def _store(
    teacher: Pipeline,
    folder: Path,
    n: int,
    about: dict[str, Any],
    made: Callable[[int, int], dict[str, Tensor]],
    quiet: bool,
    shard: int,
    part: tuple[int, int],
) -> Pairs:
    """Every shard of this part that is not there yet: made(first, count) gives its columns."""
    parent = checkpoints.read(locate(teacher.folder), verify=False)["sha256"] if teacher.folder else None
    about = {"parent": parent, **about, "shape": list(teacher.shape), "classes": teacher.classes}
    fill_shards(folder, "pairs", n, about, made, quiet, shard, part)
    return Pairs(str(folder))


def noise_of(batch: Batch, owner: str) -> tuple[Tensor, Cond]:
    """The unit noise that each x of a batch of pairs was made from, like x, and the condition without it.

    Raises UserError for data that are no pairs.
    """
    if "noise" in batch.cond:
        return batch.cond["noise"].to(batch.x), {k: v for k, v in batch.cond.items() if k != "noise"}
    if batch.origin is None:
        raise UserError(f"{owner} needs pairs, items with an origin: this data has none")
    return batch.origin.normal("start", batch.x.shape[1:]).to(batch.x), batch.cond


def real_run(run: Run) -> Run:
    """The run itself, or its teacher's, or that one's teacher's, until one was trained on data and not on pairs."""
    while isinstance(run.data, Pairs):
        parent = run.teacher or run.init
        if parent is None:
            raise UserError(f"real data are asked for, and the run on {run.data.path} names no teacher that had some")
        run = run_from(checkpoints.read(locate(Path(parent)), verify=False)["run"])
    return run
