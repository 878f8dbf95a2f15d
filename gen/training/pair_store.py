"""The store of pairs that a teacher generates: numbered noise and the samples that it makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json, digest, spec_of
from gen.config.writing import write_text
from gen.data.lib.shards import WHOLE_STORE, ShardPlan
from gen.data.pairs import PROMPTS, Pairs
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import sample_seeds
from gen.diffusion.path import NoisePath
from gen.pipeline import Pipeline
from gen.training.distributed import is_main
from gen.training.run import Sampler
from gen.training.shard_store import fill_shards, parent_hash
from gen.training.sources import network_hash

__all__ = ["about_teacher", "make_pairs", "with_fixed_times"]


def make_pairs(
    teacher: Pipeline,
    folder: Path,
    n: int,
    sampler: Sampler,
    seed: int = 1,
    plan: ShardPlan = WHOLE_STORE,
    prompts: Sequence[str] = (),
    batch_size: int | None = None,
) -> Pairs:
    """Generate pairs of noise and sample; whole shards that are there already are kept.

    Noise i is that of sample seed i, so it is drawn again rather than stored (rf++, Lee et al. 2024, appendix). Labels
    are balanced. Of a teacher that reads captions the captions are stored, and not what it makes of them.

    Args:
        teacher: the pipeline that is sampled.
        folder: of the store.
        n: number of pairs.
        sampler: how the teacher is sampled.
        seed: of the noise.
        plan: how the store is written.
        prompts: of a teacher that reads captions: pair i is of prompt i, and again from the first; () for those that
            its pipeline has.
        batch_size: samples at a time; None for 250, and for 8 of a pipeline of diffusers.

    Raises:
        UserError: if the folder holds pairs of another teacher, sampler, seed, number or shard size; and for a teacher
            that reads captions without any.
    """
    known = tuple(prompts) or tuple(getattr(teacher.encode_prompts, "prompts", ()))
    if (teacher.encode_prompts is None) == bool(known):
        need = "samples by captions: give prompts, --prompts FILE"
        raise UserError(f"{teacher.name} {'takes no captions: leave out the prompts' if known else need}")
    size = batch_size or (250 if teacher.decoder is None else 8)
    if isinstance(teacher.denoiser, Denoiser):
        sampler = with_fixed_times(sampler, teacher.denoiser.path)
    sampled = replace(teacher, sampler=sampler)

    def generate(first: int, count: int) -> dict[str, Tensor]:
        origin = {"origin": torch.tensor(sample_seeds(seed, count, first))}
        if not known:
            out = sampled.sample(count, seed=seed, start=first, batch_size=size)
            return {"x": out.x, **out.cond, **origin}
        rows = torch.arange(first, first + count) % len(known)
        parts: Iterator[tuple[int, list[int]]] = ((i, rows[i : i + size].tolist()) for i in range(0, count, size))
        some = [
            sampled.sample(len(part), [known[row] for row in part], seed=seed, start=first + i, batch_size=size)
            for i, part in parts
        ]
        labels = {"y": torch.cat([out.cond["y"] for out in some])} if "y" in some[0].cond else {}
        return {"x": torch.cat([out.x for out in some]), **labels, "prompt": rows, **origin}

    about: Json = {"sampler": spec_of(sampler, named=False), "seed": seed}
    if known:
        about["prompts"] = digest(list(known))
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / PROMPTS).exists():
                write_text(folder / PROMPTS, json.dumps(list(known), ensure_ascii=False))
    fill_shards(folder, "pairs", n, about_teacher(teacher, about), generate, plan)
    return Pairs(str(folder))


def with_fixed_times(sampler: Sampler, path: NoisePath) -> Sampler:
    """Return a sampler whose times are numbers, which a file can hold, where they were those of a pipeline's scheduler.

    Args:
        sampler: any.
        path: of the denoiser.
    """
    if not hasattr(sampler.grid, "heard"):
        return sampler
    return replace(sampler, grid=sampler.grid.times(path, sampler.steps).tolist())


def about_teacher(teacher: Pipeline, about: Json) -> dict[str, Any]:
    """Return what the shards of a teacher's store say of it.

    Args:
        teacher: the pipeline; of one of diffusers the weights of its network are hashed.
        about: what they say besides.
    """
    f = teacher.denoiser if teacher.info is None and teacher.folder is not None else None
    parent = network_hash(f.net) if isinstance(f, Denoiser) else parent_hash(teacher.folder)
    return {"parent": parent, **about, "shape": list(teacher.shape), "classes": teacher.classes}
