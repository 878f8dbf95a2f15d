"""A Run: everything that decides what a training does, as one frozen value; run.json is its spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils.data import Dataset

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import Json, build, convert, find, part, spec_of
from gen.config.trust import names_from
from gen.data import DataSource
from gen.data.given import GivenData
from gen.diffusion.contracts import Cache, Grid, Guide, Solver
from gen.diffusion.net import NetSpec
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import Flow, NoisePath
from gen.text.decoding import Decoding
from gen.text.mask_path import MaskPath
from gen.training.batch_plan import BatchPlan
from gen.training.defaults import follow, on_path
from gen.training.ema import EMA, Classic
from gen.training.lora import LoRA
from gen.training.objectives import Objective
from gen.training.older_runs import translated
from gen.training.optim import Optimiser
from gen.training.optim.adamw import AdamW
from gen.training.outer import Outer
from gen.training.schedules import Constant, Schedule

__all__ = ["Run", "Sampler", "run_from", "run_spec"]


@dataclass(frozen=True)
class Sampler:
    """The default way to sample a model: that of its pipeline, and of the previews drawn while it trains.

    Each part is a name, a spec or an object; `grid` may also be the times themselves, as a list or tensor.

    Attributes:
        solver: see gen.samplers.solvers.
        steps: solver steps, at least 1; EDM's 18 by default.
        grid: the times, see gen.samplers.grids; those that suit the path by default.
        guide: see gen.samplers.guides; None for the conditional model alone.
        cache: see gen.samplers.caches; None to compute every evaluation in full.
    """

    solver: Any = part("samplers.solvers", kinds=(Solver,), default="heun")
    steps: int = 18
    grid: Any = part("samplers.grids", kinds=(Grid,), default="natural")
    guide: Any = part("samplers.guides", kinds=(Guide,), default=None)
    cache: Any = part("samplers.caches", kinds=(Cache,), default=None)

    def __post_init__(self) -> None:
        grid = self.grid.tolist() if isinstance(self.grid, Tensor) else self.grid
        if isinstance(grid, (list, tuple)):  # the times themselves
            object.__setattr__(self, "grid", {"name": "given", "values": list(grid)})
        check_fields(self, steps="[1, 1000000]")
        if lacks := [name for name in ("init", "nfe", "reads_variance") if not hasattr(self.solver, name)]:
            raise UserError(
                f"Sampler: solver: got {shown(self.solver)} without {', '.join(lacks)}; allowed: a name or a spec of "
                "`gen list samplers.solvers`, or a gen.diffusion.contracts.Solver. For a scheduler of diffusers "
                "name its rule, such as unipc, dpmpp or ddim"
            )

    def changed(self, given: Mapping[str, Any]) -> Sampler:
        """Return the sampler with other fields; times that are given decide the steps where these are not."""
        how = replace(self, **given)
        values = getattr(how.grid, "values", None) if "grid" in given and "steps" not in given else None
        return replace(how, steps=max(len(values) - 1, 1)) if isinstance(values, tuple) else how

    def start_std(self, path: NoisePath) -> float | None:
        """Return the standard deviation of x that the grid's loop begins with; None for sigma of its first time.

        Only grids of another library's loop have one.
        """
        of_grid = getattr(self.grid, "start_std", None)
        return None if of_grid is None else float(of_grid(path, self.steps))


@dataclass(frozen=True)
class Run:
    """A training: everything that decides what is computed, and how often the trainer records it.

    Parts are given as objects, names or specs, and read as objects. Defaults follow the choice that they depend on
    (gen.training.defaults): parameterisation, times and grid the path, and what a model's spec leaves out the data.

    Attributes:
        model: the network's spec (gen.diffusion.net.NetSpec), see gen.models; or a torch.nn.Module of one's own, see
            gen.models.given.
        data: what is trained on, see gen.data; or a map-style torch Dataset of one's own, see gen.data.given; None for
            an imported model that is only sampled.
        objective: the losses, see gen.training.objectives and gen.distillers; None as for data.
        path: the forward process: a NoisePath, or for text a MaskPath.
        parameterisation: the meaning of the network's output; by default that of the path, None on a MaskPath.
        optim: the optimiser, with its peak learning rate.
        schedule: of the learning rate.
        ema: averages of the weights, each with its own label; the first is validated, previewed and loaded.
        ema_device: "cpu" keeps the averages in the CPU's memory, where a thread updates them from a copy of the weights
            while the next step is computed; None on the device of the networks.
        sampler: the default way to sample the model; a Decoding for text.
        steps: number of updates.
        batch_size: GLOBAL samples per update, over all processes and micro-batches.
        batch_plan: stages of larger batches, whole multiples of batch_size.
        micro_batch_size: samples per process and pass of the network, in training and validation; gradients accumulate
            until the batch is full. None for a process's whole share of batch_size.
        seed: of initialisation, order of the data and noise.
        precision: "no" is float32, "bf16" and "fp16" autocast; "fp8" is bf16 with the products of blocks in float8
            (gen.training.low_precision), which needs torchao and a GPU of compute capability 8.9, and saves time where
            it is compiled.
        clip: largest gradient norm, positive.
        compile: whether networks are compiled by torch.compile.
        fused: whether transformer blocks take norms, gates and sums in the fewest passes over memory, which rounds
            otherwise.
        gradient_checkpointing: whether blocks keep only their input for the backward pass and compute the rest again
            there: less memory for about a third more time.
        shard: whether each of several processes holds only a part of parameters, gradients, averages and optimiser
            state (FSDP2).
        checkpoints: of sharded networks: "whole" files, gathered by the first process; or "sharded", to which each
            process writes its own part, in a folder that all of them share. Either is read by any number of processes.
        outer: how several processes that step apart, each on its share of the batch, meet every so many steps, see
            gen.training.outer; None where they share every gradient.
        workers: processes that load data; 0 loads in the training process.
        log_every, sample_every, validate_every, save_every: in steps; 0 for never, but for log_every. Checkpoints are
            written while training goes on, from a copy of the state in the CPU's memory.
        keep: how many checkpoints stay, at least 2.
        trackers: names of accelerate's trackers, such as "tensorboard" and "wandb".
        peak_tflops: peak of one device in the run's precision, such as 989 for an H100 in bf16; with it metrics.jsonl
            has "mfu", the share of it that is used: operations of matrix products, convolutions and attention, counted
            in the first step (custom kernels are not), over the time. "measured" takes what large matrix products in
            that precision reach here, for fp8 in bf16. None for no MFU: no peak is assumed.
        teacher: the run folder that a distiller learns from. Beside adapters of a network that was given as an object,
            None is that network without them.
        init: a run folder whose weights the training starts from.
        lora: adapters that are trained and stored instead of the weights of `init`, or of a network that was given as
            an object; None to train these.
    """

    model: Any = part("models", "models.autoencoders", kinds=(NetSpec,))
    data: DataSource | None = part("data", default=None)
    objective: Objective | None = part("training.objectives", "distillers", default=None)
    path: Any = part("diffusion.path", "text.mask_path", kinds=(NoisePath, MaskPath), default=Flow())
    parameterisation: Any = part("diffusion.parameterisation", kinds=(Parameterisation,), default=None)
    optim: Any = part("training.optim", kinds=(Optimiser,), default=AdamW())
    schedule: Schedule = part("training.schedules", default=Constant())
    ema: tuple[EMA, ...] = part("training.ema", default=(Classic(),))
    ema_device: Literal["cpu"] | None = None
    sampler: Sampler | Decoding = dataclasses.field(default_factory=Sampler)
    steps: int = 10_000
    batch_size: int = 256
    batch_plan: BatchPlan = dataclasses.field(default_factory=BatchPlan)
    micro_batch_size: int | None = None
    seed: int = 0
    precision: Literal["no", "bf16", "fp16", "fp8"] = "no"
    clip: float = 1.0
    compile: bool = False
    fused: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    checkpoints: Literal["whole", "sharded"] = "whole"
    outer: Outer | None = part("training.outer", default=None)
    workers: int = 0
    log_every: int = 50
    sample_every: int = 500
    validate_every: int = 250
    save_every: int = 500
    keep: int = 2
    trackers: tuple[str, ...] = ()
    peak_tflops: float | Literal["measured"] | None = None
    teacher: str | None = None
    init: str | None = None
    lora: LoRA | None = None

    follow: ClassVar = staticmethod(follow)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _data_of(self.data))
        object.__setattr__(self, "model", _model_of(self.model, self.data))
        if isinstance(self.model, (str, Mapping)):
            given = {"model": self.model, "data": self.data, "path": self.path}
            object.__setattr__(self, "model", follow(None, given)["model"])
        every = dict.fromkeys(("sample_every", "validate_every", "save_every"), "[0, inf)")
        check_fields(self, steps="[1, 1000000000]", batch_size="[1, inf)", micro_batch_size="[1, inf)", clip="(0, inf)",
                     workers="[0, 1024]", log_every="[1, inf)", keep="[2, inf)",
                     peak_tflops="(0, inf)", **every)  # fmt: skip
        if self.parameterisation is None and isinstance(self.path, NoisePath):
            natural = build("diffusion.parameterisation", self.path.natural["parameterisation"])
            object.__setattr__(self, "parameterisation", natural)
        object.__setattr__(self, "objective", on_path(self.objective, self.path))
        object.__setattr__(self, "sampler", on_path(self.sampler, self.path))
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"Run: micro_batch_size = {self.micro_batch_size} does not divide batch_size = {self.batch_size}"
            )
        if self.lora is not None and self.init is None and not hasattr(self.model, "found"):  # given
            raise UserError("Run: lora with no init, whose weights adapters belong to")
        labels = [average.label for average in self.ema]
        if len(set(labels)) != len(labels):
            raise UserError(f"Run: two averages are called {max(labels, key=labels.count)!r}; give each its own label")

    def learning_rate(self, update: int, of: int | None = None) -> float:
        """Return the learning rate of an update.

        Args:
            update: 0, 1, ..., steps - 1.
            of: the update whose batch is trained on; None for the same.
        """
        scale = self.batch_plan.rate_factor(update if of is None else of)
        return float(self.optim.lr * self.schedule.factor(update, self.steps) * scale)

    def samples_before(self, update: int) -> int:
        """Return how many samples the updates before one have seen."""
        return self.batch_size * self.batch_plan.batches_before(update)

    @property
    def given_base(self) -> nn.Module | None:
        """The network, given as an object, that the run's adapters belong to; None for any other run."""
        whole = self.lora is None or self.init is not None
        return None if whole else getattr(self.model, "module", None)


def _data_of(data: Any) -> Any:
    """Return a map-style data set as a source; anything else as it is."""
    if hasattr(data, "open") or isinstance(data, (str, bytes, Mapping, list, tuple, type)):
        return data
    return GivenData(data) if hasattr(data, "__len__") or isinstance(data, Dataset) else data


def _model_of(model: Any, data: Any) -> Any:
    """Return a module as the spec that holds it; anything else as it is."""
    if not isinstance(model, nn.Module):
        return model
    data = build("data", data) if isinstance(data, (str, Mapping)) else data
    if not hasattr(data, "shape"):
        raise UserError(f"Run: the model, a {type(model).__name__}, is an object, and needs data to fit")
    return find("given", "models")(model, shape=data.shape, classes=data.classes)


# Fields that may differ when a run is resumed: they decide how long it runs and what it records, not what it computes.
RESUMABLE = {
    "steps",
    "sampler",
    "workers",
    "log_every",
    "sample_every",
    "validate_every",
    "save_every",
    "keep",
    "trackers",
    "peak_tflops",
    "micro_batch_size",
    "gradient_checkpointing",
    "shard",
    "checkpoints",
    "ema_device",
}


def run_spec(run: Run) -> Json:
    """Return the JSON object of a run, which `run_from` reads.

    Args:
        run: the run.
    """
    return spec_of(run, named=False)


def run_from(spec: object, source: object) -> Run:
    """Build the run of a JSON object.

    Args:
        spec: what `run_spec` returned.
        source: the file or folder that it is from, whose "module:Class" names must be allowed, see gen.config.trust;
            None for what the user wrote.

    Raises:
        UserError: in one line, for unknown keys, names and values.
    """
    with names_from(source):
        return convert(translated(spec), Run, "run")
