"""LD-Pruner: removes the operators whose removal changes the final latents least, and retrains the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import read_json
from gen.config.spec import build, part, spec_of
from gen.config.writing import write_json
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.tap import Chain, Compute, Skip, Tap
from gen.diffusion.times import Natural, Times
from gen.distillers.lib.networks import output_as
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.pipeline import Pipeline, load
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state, drop_condition
from gen.training.run import Run, Sampler
from gen.training.shard_store import parent_hash

__all__ = ["LDPruner", "SkippingDenoiser", "find_operators", "latent_score"]


@dataclass(frozen=True)
class LDPruner(Distiller):
    """LD-Pruner, pruning by how far the final latents move, and retraining (Castells et al. 2024).

    An operator is the residual of a site; removed, it is the identity. Its score is how far the mean and the deviation
    of the final latents move without it, over samples of the same seeds and labels: see latent_score. Neither decoder
    nor metric is needed. The training loss is (1 - w) |out - target|^2 + w |out - teacher's|^2, the mean over elements.

    Attributes:
        share: of the network's trained weights, removed at least, as far as candidates go, in (0, 1).
        samples: number of latents of a score, at least 2.
        sampler: how they are sampled.
        seed: of their noise.
        sites: patterns of candidates; of nested ones the innermost count.
        rescore: score what is left after each removal, as scores do not add up; otherwise once.
        times: density of t.
        teacher_weight: w, in [0, 1].
        class_dropout: probability that a condition is replaced by the null one.
    """

    share: float = 0.2
    samples: int = 128
    sampler: Sampler = field(default_factory=lambda: Sampler("euler", steps=8))
    seed: int = 1
    sites: tuple[str, ...] = ("blocks.*",)
    rescore: bool = False
    times: Times = part("diffusion.times", default=Natural())
    teacher_weight: float = 0.5
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, share="(0, 1)", samples="[2, inf)", teacher_weight="[0, 1]", class_dropout="[0, 1]")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run, pruned, from its weights; scores are kept in folder/operators.json, and reused."""
        if hasattr(run.model, "unused"):
            raise UserError(
                f"LDPruner: {teacher} is pruned already; prune the network it came from, with a larger share"
            )
        training = ("times", "teacher_weight", "class_dropout")
        about = {
            "parent": parent_hash(teacher),
            "settings": {k: v for k, v in spec_of(self).items() if k not in training},
        }
        file = folder / "operators.json"
        chosen = read_json(file) if file.exists() else {}
        if {k: chosen.get(k) for k in about} != about:
            chosen = {**about, **self.choose_operators(load(teacher), run.model)}
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, chosen)
        model = build("models", {"name": "pruned", "inner": spec_of(run.model), "sites": chosen["removed"]})
        return replace(run, model=model, objective=self, teacher=str(teacher), init=str(teacher), steps=run.steps // 2)

    def choose_operators(self, pipeline: Pipeline, model: Any) -> dict[str, Any]:
        """Return the operators to remove, all scores, the weights of each, and sites that no identity can replace."""
        candidates, fixed = find_operators(pipeline, self.sites)
        if not candidates:
            raise UserError(f"LDPruner: no site of this model matches {', '.join(self.sites)} and can be left out")
        weights = {site: _weights(model, site) for site in candidates}
        assert isinstance(pipeline.denoiser, Denoiser)
        budget = self.share * sum(p.numel() for p in pipeline.denoiser.net.parameters())
        removed: list[str] = []
        rounds: list[dict[str, float]] = []
        while sum(weights[site] for site in removed) < budget and len(removed) < len(candidates) - 1:
            if self.rescore or not rounds:
                left = [site for site in candidates if site not in removed]
                rounds.append(self.scores(pipeline, left, tuple(removed)))
            removed.append(min((s for s in rounds[-1] if s not in removed), key=rounds[-1].__getitem__))
        return {"removed": removed, "scores": rounds, "weights": weights, "not_replaceable": fixed}

    def scores(self, pipeline: Pipeline, sites: list[str], removed: tuple[str, ...] = ()) -> dict[str, float]:
        """Return the score of each site, beside those that are removed already."""
        reference = self.latents(pipeline, removed)
        return {site: latent_score(reference, self.latents(pipeline, (*removed, site))) for site in sites}

    def latents(self, pipeline: Pipeline, sites: tuple[str, ...]) -> Tensor:
        """Return samples without some sites, always of the same seeds and labels: [samples, ...]."""
        pruned = replace(pipeline, denoiser=SkippingDenoiser(pipeline.denoiser, sites), sampler=self.sampler)
        return pruned.sample(self.samples, seed=self.seed).x

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, "LDPruner")
        require_teacher("LDPruner", teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = draw_times(self.times, batch, "t", f.path)
        data, teacher = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), t)
        loss = (1 - self.teacher_weight) * data + self.teacher_weight * teacher
        yield "net", loss.mean(), {"data_loss": data.mean(), "teacher_loss": teacher.mean()}

    def losses(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's square error against the data's target and against the teacher, [B] both."""
        f: Denoiser = roles["net"]
        eps = batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        with torch.no_grad():
            theirs = output_as(f, roles["teacher"], x, t, cond)
        out, target = f.output(x, t, cond), f.parameterisation.target(f.path, batch.x, eps, t)
        data, teacher = (((out - y).float() ** 2).flatten(1).mean(1) for y in (target, theirs))
        return data, teacher

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the data's loss at 8 fixed times."""
        path = roles["net"].path
        return mean_at_fixed_times(self.times, path, batch, lambda t: self.losses(roles, batch, batch.cond, t)[0])


@dataclass(frozen=True, eq=False)
class SkippingDenoiser:
    """A denoiser without the residuals of some sites.

    Attributes:
        inner: the whole denoiser.
        sites: their names.
    """

    inner: DenoiserLike
    sites: tuple[str, ...]

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        skip = Skip(self.sites)
        return self.inner(x, t, cond, s=s, tap=skip if tap is None else Chain((tap, skip)))

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


def latent_score(reference: Tensor, pruned: Tensor) -> float:
    """Return |mean - mean'| + |std - std'| over n latents, norms over a latent's elements.

    Args:
        reference, pruned: latents of equal seeds, [n, ...].
    """
    mean = (reference.mean(0) - pruned.mean(0)).norm()
    return float(mean + (reference.std(0) - pruned.std(0)).norm())


@torch.no_grad()
def find_operators(pipeline: Pipeline, patterns: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """List the innermost sites that match a pattern, by one evaluation.

    Bare modules inside a residual ("....raw") are no residuals themselves.

    Args:
        pipeline: whose denoiser is evaluated.
        patterns: as of a shell.

    Returns:
        The sites that can be the identity, in order of the call, and those that cannot.
    """
    replaceable: dict[str, bool] = {}

    def look(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        replaceable[site] = out.shape == h.shape
        return out

    x = torch.zeros(1, *pipeline.shape, device=pipeline.device)
    cond = {k: v.to(pipeline.device) for k, v in pipeline.condition(1).items()}
    pipeline.denoiser(x, torch.tensor(0.5 * pipeline.denoiser.path.t1, dtype=torch.float64), cond, tap=look)
    sites = [s for s in replaceable if any(fnmatchcase(s, p) for p in patterns) and not s.endswith(".raw")]
    innermost = [s for s in sites if not any(other.startswith(f"{s}.") for other in sites)]
    return [s for s in innermost if replaceable[s]], [s for s in innermost if not replaceable[s]]


def _weights(model: Any, site: str) -> int:
    """The number of trained weights that only this site uses."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in model.build().named_parameters()}
    pruned = build("models", {"name": "pruned", "inner": spec_of(model), "sites": [site]})
    return sum(sizes[name] for name in pruned.unused())
