"""The pair store: what a teacher's ODE makes of numbered noise, or which noise it makes of data; and its students."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import spec_of
from gen.data import DataSource
from gen.data.lib.shards import WHOLE_STORE, ShardPlan
from gen.data.pairs import Pairs
from gen.diffusion.denoiser import Cond
from gen.diffusion.noise import Noise, derive, sample_seeds
from gen.distillers.lib.teacher import guided_teacher, require_data
from gen.distillers.lib.trajectory import invert
from gen.pipeline import Pipeline, load
from gen.training.distillation import Distiller, teacher_run
from gen.training.objectives import Batch
from gen.training.objectives.denoise import check_state
from gen.training.pair_store import about_teacher, make_pairs
from gen.training.run import Run, Sampler
from gen.training.shard_store import fill_shards

__all__ = ["PairDistillation", "invert_pairs", "pair_noise", "real_data_of"]

LOWEST = 1e-3  # sigma / alpha of the noise that data get before they are inverted, as rf++ has it
BATCH = 250  # rows of an inversion


@dataclass(frozen=True)
class PairDistillation(Distiller):
    """The common part of distillers that train on stored pairs of noise and a teacher's sample.

    Attributes:
        pairs: how many are generated before the training, at least 1.
        teacher_sampler: how.
        real_data: pairs of the teacher's training data and the noise that its ODE makes of them (rf++'s configuration
            G; the teacher may be a student of pairs itself), instead of noise and samples.
        store: folder of the pairs, to share them between students; None for the student's own folder.
    """

    pairs: int = 16_384
    teacher_sampler: Sampler = field(default_factory=lambda: Sampler(steps=16))
    real_data: bool = False
    store: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, pairs="[1, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run on its pairs, which are generated, from its weights, sampled in one Euler step."""
        check_state(getattr(run.model, "module", None) or run.model.build(), type(self).__name__)
        opened = getattr(run.model, "prompted", None)  # a pipeline of diffusers
        store, pipeline = Path(self.store or folder / "pairs"), load(teacher) if opened is None else opened.pipeline
        if self.real_data:
            data: Any = invert_pairs(pipeline, real_data_of(run), store, self.teacher_sampler, self.pairs)
        else:
            source: Any = run.data
            captions = _captions(source) if opened is None else ()
            data = make_pairs(pipeline, store, self.pairs, self.teacher_sampler, prompts=captions)
            data = replace(source, data=data) if captions else data
        sampler = Sampler("euler", steps=1)
        return replace(run, objective=self, data=data, teacher=None, init=str(teacher), sampler=sampler)


def _captions(source: Any) -> tuple[str, ...]:
    """Return the training captions of data that have them as conditions; () of any other."""
    if not hasattr(source, "encode_prompts"):
        return ()
    items = source.open("train")
    return tuple(items.caption(i) for i in range(len(items)))


def invert_pairs(
    teacher: Pipeline,
    data: DataSource,
    folder: Path,
    sampler: Sampler,
    n: int | None = None,
    seed: int = 1,
    plan: ShardPlan = WHOLE_STORE,
) -> Pairs:
    """Generate pairs of training items and the noise that the teacher's ODE makes of them (rf++, section 4.3).

    The noise is stored, unit like any other, so that the sampler leads from it back to the item as well as it can.

    Args:
        teacher: the pipeline whose ODE it is.
        data: a data set; its training items are taken.
        folder: of the store.
        sampler: solver, grid and guide of the ODE.
        n: at most so many items, in an order of the seed's; None for all.
        seed: of the order, and of the little noise that items get first.
        plan: how the store is written.

    Raises:
        UserError: as of make_pairs, and for a sampler with a cache.
    """
    if sampler.cache is not None:
        raise UserError(f"teacher_sampler.cache = {sampler.cache!r}: an inversion reuses no features; leave it out")
    opened = data.open("train")
    generator = torch.Generator().manual_seed(derive("invert", seed))
    order = torch.randperm(len(opened), generator=generator)[: n or len(opened)].tolist()

    def generate(first: int, count: int) -> dict[str, Tensor]:
        items = torch.utils.data.default_collate([opened[i] for i in order[first : first + count]])
        x, cond = items["x"], {k: v for k, v in items.items() if k != "x"}
        seeds, noise = sample_seeds(seed, count, first), []
        for rows in (slice(i, i + BATCH) for i in range(0, count, BATCH)):
            part = {k: v[rows].to(teacher.device) for k, v in cond.items()}
            noise.append(_noise_of(teacher, x[rows].to(teacher.device), part, Noise(tuple(seeds[rows])), sampler))
        return {"x": x, **cond, "noise": torch.cat(noise)}

    about = {"sampler": spec_of(sampler, named=False), "seed": seed, "inverted": opened.fingerprint}
    fill_shards(folder, "pairs", len(order), about_teacher(teacher, about), generate, plan)
    return Pairs(str(folder))


@torch.no_grad()
def _noise_of(teacher: Pipeline, x: Tensor, cond: Cond, noise: Noise, sampler: Sampler) -> Tensor:
    """The unit noise of which the teacher's ODE makes x [B, ...]."""
    path, times = teacher.denoiser.path, sampler.grid.times(teacher.denoiser.path, sampler.steps)
    low = path.t_from_lambda(-torch.tensor(LOWEST, dtype=torch.float64).log()).clamp(max=float(times[-2]) / 2)
    times = torch.cat([times[:-1], low[None]])
    f = guided_teacher(teacher.denoiser, path, sampler.guide, times)
    x_low = path.mix(x, noise.normal("invert", x.shape[1:]).to(x), low)
    return (invert(f, x_low, times, sampler.solver, cond) / float(path.sigma(times[0]))).float().cpu()


def pair_noise(batch: Batch, owner: str) -> tuple[Tensor, Cond]:
    """Return the unit noise of each pair, like x, and the condition without it.

    Args:
        batch: of pairs.
        owner: name of the distiller, for the message.

    Raises:
        UserError: for data that are no pairs.
    """
    if "noise" in batch.cond:
        return batch.cond["noise"].to(batch.x), {k: v for k, v in batch.cond.items() if k != "noise"}
    if batch.origin is None:
        raise UserError(f"{owner} needs pairs, items with an origin: this data has none")
    return batch.origin.normal("start", batch.x.shape[1:]).to(batch.x), batch.cond


def real_data_of(run: Run) -> DataSource:
    """Return the data of a run, or of its teacher's, or of that one's teacher's: the first that are no pairs.

    Args:
        run: of a teacher.

    Raises:
        UserError: for a run on pairs that names no teacher, and for one without data.
    """
    while isinstance(run.data, Pairs):
        parent = run.teacher or run.init
        if parent is None:
            raise UserError(f"real data are asked for, and the run on {run.data.path} names no teacher that had some")
        run = teacher_run(parent)
    return require_data("real_data", run)
