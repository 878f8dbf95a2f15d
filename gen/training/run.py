"""A Run: everything that decides what a training does, as one frozen value. run.json is its spec, and runs again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build_parts, convert, part, spec_of
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.text.decoding import Decoding
from gen.training.ema import Classic
from gen.training.optim.adamw import AdamW
from gen.training.schedules import Constant

__all__ = ["Run", "Sampler", "run_from", "run_spec"]


@dataclass(frozen=True)
class Sampler:
    """How a model wants to be sampled: the default of its pipeline, and of the pictures drawn while it trains."""

    solver: Any = part("samplers.solvers", default="heun")
    steps: int = 18
    grid: Any = part("samplers.grids", default="linear")
    guide: Any = part("samplers.guides", default=None)
    cache: Any = part("samplers.caches", default=None)

    def __post_init__(self) -> None:
        grid = self.grid.tolist() if isinstance(self.grid, Tensor) else self.grid
        if isinstance(grid, (list, tuple)):  # the times themselves
            object.__setattr__(self, "grid", {"name": "given", "values": list(grid)})
        build_parts(self)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UserError(f"Sampler: steps = {self.steps!r}; it must be a whole number, at least 1")
        for name, method in {"solver": "step", "grid": "times", "guide": "__call__", "cache": "start"}.items():
            part_ = getattr(self, name)
            optional = part_ is None and name in ("guide", "cache")
            if not optional and (isinstance(part_, type) or not hasattr(part_, method)):
                raise UserError(f"Sampler: {name} = {part_!r}; allowed: a name, a spec, or an object with {method}()")


@dataclass(frozen=True)
class Run:
    """model has no default; batch_size is the GLOBAL one, over all processes and micro-batches.

    data, objective: None for a model that was imported and can be sampled; to train it, set them.
    path: of numbers (gen/diffusion/path.py), or of masks (gen/text/mask_path.py) for tokens, with parameterisation None
    and a Decoding as sampler. micro_batch_size: samples per process and backward pass; gradients accumulate until the
    global batch is full. fused: transformer blocks take norms, gates and sums in the fewest passes over memory, which
    rounds otherwise. shard: of several processes each holds a part of parameters, gradients, averages and optimiser
    state (FSDP2). clip: the largest gradient norm. *_every: in steps, 0 for never. keep: how many checkpoints stay, at
    least 2. teacher: the run folder a distiller learns from. init: a run folder whose weights the training starts from.
    """

    model: Any = part("models")
    data: Any = part("data", default=None)
    objective: Any = part("training.objectives", "distillers", default=None)
    path: Any = part("diffusion.path", "text.mask_path", default=Flow())
    parameterisation: Any = part("diffusion.parameterisation", default=Velocity())
    optim: Any = part("training.optim", default=AdamW())
    schedule: Any = part("training.schedules", default=Constant())
    ema: Any = part("training.ema", default=(Classic(),))
    sampler: Sampler | Decoding = dataclasses.field(default_factory=Sampler)
    steps: int = 10_000
    batch_size: int = 256
    micro_batch_size: int | None = None
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: float = 1.0
    compile: bool = False
    fused: bool = False
    shard: bool = False
    workers: int = 0
    log_every: int = 50
    sample_every: int = 500
    validate_every: int = 250
    save_every: int = 500
    keep: int = 2
    trackers: tuple[str, ...] = ()
    teacher: str | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        build_parts(self)
        for name, low in {"steps": 1, "batch_size": 1, "keep": 2, "log_every": 1}.items():
            if getattr(self, name) < low:
                raise UserError(f"Run: {name} = {getattr(self, name)}; it must be at least {low}")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise UserError(
                f"Run: micro_batch_size = {self.micro_batch_size} does not divide batch_size = {self.batch_size}"
            )
        if not self.clip > 0:
            raise UserError(
                f"Run: clip = {self.clip}; it must be positive (inf for none is not JSON: use a large number)"
            )
        labels = [average.label for average in self.ema]
        if len(set(labels)) != len(labels):
            raise UserError(f"Run: two averages are called {max(labels, key=labels.count)!r}; give each its own label")


# What may differ when a run goes on: it decides how long and how loudly, not what is computed.
FREE = {
    "steps",
    "sampler",
    "workers",
    "log_every",
    "sample_every",
    "validate_every",
    "save_every",
    "keep",
    "trackers",
    "micro_batch_size",
    "shard",
}


def run_spec(run: Run) -> dict[str, Any]:
    """The JSON of a run."""
    return spec_of(run, named=False)


def run_from(spec: Mapping[str, Any]) -> Run:
    """The run of a JSON; raises UserError, in one line, for keys and values that are no run's."""
    return convert(dict(spec), Run, "run")
