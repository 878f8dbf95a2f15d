"""LD-Pruner: leaves out the operators that the final latents miss least, and mends the rest by training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, part, spec_of
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.tap import Chain, Compute, Skip, Tap
from gen.diffusion.times import Uniform
from gen.distillers.lib.networks import output_as
from gen.distillers.lib.teacher import require_teacher
from gen.pipeline import Pipeline, load, locate
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["LDPruner", "Without", "operators", "score"]


@dataclass(frozen=True)
class LDPruner:
    """Removes the operators of lowest score, then trains on the data and on the teacher (Castells et al. 2024).

    An operator is the residual of a site; removed, it is the identity. Its score is how far the mean and the deviation
    of the final latents, over `samples` samples of the same seeds and labels, move without it: |mean - mean'| +
    |std - std'|, norms over a latent's elements. Neither decoder nor metric is needed. sites: patterns of candidates;
    of nested ones the innermost count. share: of the network's trained weights, removed at least, as far as candidates
    go. rescore: score what is left after each removal, as scores do not add up; otherwise once.
    The training: (1 - teacher) |out - target|^2 + teacher |out - teacher's|^2, its mean over elements.
    """

    share: float = 0.2
    samples: int = 128
    sampler: Sampler = field(default_factory=lambda: Sampler("euler", steps=8))
    seed: int = 1
    sites: tuple[str, ...] = ("blocks.*",)
    rescore: bool = False
    times: Any = part("diffusion.times", default=Uniform())
    teacher: float = 0.5
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 <= self.teacher <= 1 and 0 <= self.class_dropout <= 1):
            raise UserError(
                f"LDPruner: share = {self.share}, teacher = {self.teacher}, class_dropout = {self.class_dropout}; "
                "allowed: (0, 1), [0, 1], [0, 1]"
            )
        if self.samples < 2:
            raise UserError(f"LDPruner: samples = {self.samples}; a deviation needs at least 2")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run, pruned, from its weights. The scores are in folder/operators.json, and are reused."""
        if hasattr(run.model, "unused"):
            raise UserError(
                f"LDPruner: {teacher} is pruned already; prune the network it came from, with a larger share"
            )
        about = {
            "parent": checkpoints.read(locate(teacher), verify=False)["sha256"],
            "settings": {k: v for k, v in spec_of(self).items() if k not in ("times", "teacher", "class_dropout")},
        }
        place = folder / "operators.json"
        found = checkpoints.read_json(place) if place.exists() else {}
        if {k: found.get(k) for k in about} != about:
            found = {**about, **self.choose(load(teacher), run.model)}
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.write_json(place, found)
        model = build("models", {"name": "pruned", "inner": spec_of(run.model), "sites": found["removed"]})
        return replace(run, model=model, objective=self, teacher=str(teacher), init=str(teacher), steps=run.steps // 2)

    def choose(self, taught: Pipeline, model: Any) -> dict[str, Any]:
        """Which operators go, with all scores, the weights of each, and the sites that no identity can replace."""
        candidates, fixed = operators(taught, self.sites)
        if not candidates:
            raise UserError(f"LDPruner: no site of this model matches {', '.join(self.sites)} and can be left out")
        weights = {site: _weights(model, site) for site in candidates}
        net: Any = getattr(taught.denoiser, "net", None)
        budget = self.share * sum(p.numel() for p in net.parameters())
        removed: list[str] = []
        rounds: list[dict[str, float]] = []
        while sum(weights[site] for site in removed) < budget and len(removed) < len(candidates) - 1:
            if self.rescore or not rounds:
                left = [site for site in candidates if site not in removed]
                rounds.append(self.scores(taught, left, tuple(removed)))
            removed.append(min((s for s in rounds[-1] if s not in removed), key=rounds[-1].__getitem__))
        return {"removed": removed, "scores": rounds, "weights": weights, "not_replaceable": fixed}

    def scores(self, taught: Pipeline, sites: list[str], removed: tuple[str, ...] = ()) -> dict[str, float]:
        """The score of each site, beside those that are removed already."""
        whole = self.latents(taught, removed)
        return {site: score(whole, self.latents(taught, (*removed, site))) for site in sites}

    def latents(self, taught: Pipeline, sites: tuple[str, ...]) -> Tensor:
        """Samples without some sites, always of the same seeds and labels: [samples, ...]."""
        pruned = replace(taught, denoiser=Without(taught.denoiser, sites), sampler=self.sampler)
        return pruned.sample(self.samples, seed=self.seed).x

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, "LDPruner")
        require_teacher("LDPruner", teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        data, taught = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), t)
        loss = (1 - self.teacher) * data + self.teacher * taught
        yield "net", loss.mean(), {"data_loss": data.mean(), "teacher_loss": taught.mean()}

    def losses(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's square error against the data's target and against the teacher, [B] both."""
        f: Denoiser = roles["net"]
        eps = batch.normal("eps")
        x = f.path.mix(batch.x, eps, t)
        with torch.no_grad():
            theirs = output_as(f, roles["teacher"], x, t, cond)
        out, target = f.output(x, t, cond), f.parameterisation.target(f.path, batch.x, eps, t)
        data, taught = (((out - y).float() ** 2).flatten(1).mean(1) for y in (target, theirs))
        return data, taught

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The data's loss at 8 fixed times."""
        at = self.times.fixed(roles["net"].path).to(batch.x.device)
        losses = [self.losses(roles, batch, batch.cond, t.expand(len(batch.x)))[0].mean() for t in at]
        return torch.stack(losses).mean()


@dataclass(frozen=True, eq=False)
class Without:
    """A denoiser without the residuals of some sites, named exactly."""

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


def score(whole: Tensor, pruned: Tensor) -> float:
    """|mean - mean'| + |std - std'| of two sets of latents [n, ...] over n, norms over a latent's elements."""
    mean = (whole.mean(0) - pruned.mean(0)).norm()
    return float(mean + (whole.std(0) - pruned.std(0)).norm())


@torch.no_grad()
def operators(taught: Pipeline, patterns: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The innermost sites that match and can be the identity, in order of the call, and those that cannot.

    Bare modules inside a residual ("....raw") are no residuals themselves.
    """
    seen: dict[str, bool] = {}

    def look(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        seen[site] = out.shape == h.shape
        return out

    x = torch.zeros(1, *taught.shape, device=taught.device)
    cond = {k: v.to(taught.device) for k, v in taught.condition(1).items()}
    taught.denoiser(x, torch.tensor(0.5 * taught.denoiser.path.t1, dtype=torch.float64), cond, tap=look)
    found = [s for s in seen if any(fnmatchcase(s, p) for p in patterns) and not s.endswith(".raw")]
    inside = [s for s in found if not any(other.startswith(f"{s}.") for other in found)]
    return [s for s in inside if seen[s]], [s for s in inside if not seen[s]]


def _weights(model: Any, site: str) -> int:
    """How many trained weights only this site uses."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in model.build().named_parameters()}
    pruned = build("models", {"name": "pruned", "inner": spec_of(model), "sites": [site]})
    return sum(sizes[name] for name in pruned.unused())
