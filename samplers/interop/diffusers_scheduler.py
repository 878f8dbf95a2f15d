"""A solver as a scheduler object of diffusers.

A solver pulls: its step calls the denoiser as often as it likes. A pipeline pushes: it evaluates the network at each of
`timesteps` and passes the output in. The two meet by replay. The predictions received in this step are kept and the
solver's step is run again with them; the first evaluation without a prediction ends it and is the pipeline's next one.
Solvers are pure and cheap beside a network, so replay changes no bit of the result.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.spec import build, convert
from gen.diffusion.contracts import DenoiseFn, Grid, Solver
from gen.diffusion.foreign_schedule import ForeignSchedule, read_schedule
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import Flow, NoisePath, Prediction, expand
from gen.samplers.interop.timesteps import LiveTimesteps, StepwiseTimesteps, evaluations_per_step
from gen.samplers.interop.timetables import ForeignTimetable, GridTimetable, Request, Timetable

__all__ = ["Output", "Scheduler", "as_scheduler"]


class Output(NamedTuple):
    """The result of `Scheduler.step`, read by name or as a tuple.

    Attributes:
        prev_sample: x of the next evaluation, [B, ...].
        pred_original_sample: predicted x0.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


Generators = torch.Generator | list[torch.Generator] | None
PREDICTION_TYPES = {"Eps": "epsilon", "V": "v_prediction", "X0": "sample", "Velocity": "flow_prediction"}


class MissingPrediction(Exception):
    """The end of a replay: the evaluation that is needed next."""

    def __init__(self, x: Tensor, t: Tensor, s: Tensor | None):
        super().__init__(x, t, s)  # as arguments they are copied with it
        self.x, self.t, self.s = x, t, s


def as_scheduler(
    solver: Solver | str | dict[str, Any],
    path: NoisePath | None = None,
    parameterisation: Parameterisation | None = None,
    grid: Grid | str | dict[str, Any] | None = None,
    *,
    like: Any = None,
    seed: int = 0,
    time_scale: float = 1.0,
    use_dynamic_shifting: bool = False,
    network_time: Literal["exact", "like"] = "exact",
) -> Scheduler:
    """Return a scheduler for a pipeline of diffusers: `pipe.scheduler = as_scheduler("heun", like=pipe.scheduler)`.

    Args:
        solver: of samplers/solvers: a name, a spec or the object.
        path, parameterisation: those of the pipeline's network, in place of `like`.
        grid: of samplers/grids; beside `like` its own times by default, for which its set_timesteps is asked.
        like: the scheduler to replace: its noise schedule and its settings are kept, and a pipeline saves it.
        seed: of the noise of stochastic solvers, unless the pipeline passes a generator to `step`.
        time_scale: without like, the network's time is path.t_to_network(t) times this, which is 1000 for diffusers'
            flow transformers and 1 for those of DDPM.
        use_dynamic_shifting: without like, whether the times are shifted by the mu that pipelines of flow models pass,
            as diffusers' option of that name does; otherwise a mu is not used.
        network_time: "exact", or "like" for the timesteps that `like` lists, which some schedulers cut to whole numbers
            (UniPC and DPM-Solver++ on flow models).

    Raises:
        UserError: for a `like` whose noise schedule is not known here, or that clips x0; for a path or parameterisation
            beside like, and for none without it.
    """
    rule: Solver = convert(build("samplers.solvers", solver), Solver, "solver")
    times: Grid | None = None if grid is None else convert(build("samplers.grids", grid), Grid, "grid")
    path = convert(path, NoisePath | None, "path")
    parameterisation = convert(parameterisation, Parameterisation | None, "parameterisation")
    network_time = convert(network_time, Literal["exact", "like"], "network_time")
    use_dynamic_shifting = convert(use_dynamic_shifting, bool, "use_dynamic_shifting")
    seed, time_scale = convert(seed, int, "seed"), convert(time_scale, float, "time_scale")
    like = like.like if isinstance(like, Scheduler) else like
    if like is None:
        if path is None or parameterisation is None or times is None or network_time == "like":
            raise UserError("as_scheduler: give like=pipe.scheduler, or else path, parameterisation and grid")
        schedule = ForeignSchedule(path, parameterisation, time_scale)
        return Scheduler(rule, GridTimetable(schedule, times, use_dynamic_shifting), seed)
    if path is not None or parameterisation is not None:
        raise UserError("as_scheduler: path and parameterisation are like's own: give like alone, or them and a grid")
    check_like(rule, like)
    schedule = read_schedule(like)
    if times is None:
        return class_like(like)(rule, ForeignTimetable(schedule, like, network_time), seed, like)
    shifting = bool(like.config.get("use_dynamic_shifting"))
    return class_like(like)(rule, GridTimetable(schedule, times, shifting), seed, like)


def check_like(solver: Solver, like: Any) -> None:
    """Raise UserError for a scheduler to replace whose rule is more than a noise schedule, or a solver for one sample.

    Args:
        solver: to be run in a pipeline.
        like: the scheduler to replace.
    """
    kind, named = type(like).__name__, type(solver).__name__
    if not (callable(getattr(like, "set_timesteps", None)) and isinstance(getattr(like, "config", None), Mapping)):
        raise UserError(f"like = {shown(like)}; allowed: a scheduler of diffusers, such as pipe.scheduler")
    clips = [name for name in ("clip_sample", "thresholding") if like.config.get(name)]
    same = clips == ["clip_sample"] and like.config.get("clip_sample_range", 1.0) == 1
    if clips and not (same and getattr(solver, "clip", False)):
        raise UserError(
            f"{kind} has {clips[0]}=True and {named} clips no x0 so; allowed: from_config(config, {clips[0]}=False)"
        )
    if solver.nfe(4) is None and getattr(solver, "per", "") == "sample":
        raise UserError(f'{named} per sample: a pipeline has one time for all; allowed: {{..., "per": "batch"}}')


def class_like(like: Any) -> type[Scheduler]:
    """Return a Scheduler that pipelines of diffusers take for one of theirs, and save as the one that it replaced.

    A pipeline saves a part that has one of diffusers' base classes, under the part's class and module.

    Args:
        like: the scheduler that it replaces.
    """
    bases = [kind for kind in type(like).__mro__ if kind.__name__ == "SchedulerMixin"]
    names = {"__module__": type(like).__module__, "__qualname__": type(like).__qualname__}
    return type(type(like).__name__, (Scheduler, *bases), names) if bases else Scheduler


class Config(dict[str, Any]):
    """Settings by key or by attribute, as pipelines read them."""

    def __init__(self, **settings: Any):
        super().__init__(settings)
        self.__dict__ = self


class Scheduler:
    """A solver with the members that pipelines of diffusers use, from set_timesteps to add_noise.

    `timesteps` lists every evaluation, and `order` is how many of them a step has, so that step k begins at index
    k * order: 2 for heun. A solver whose first steps have more (exp_ab, flow_adams), or that chooses its steps as it
    goes (adaptive), has order 1 and a list that is cut by steps (StepwiseTimesteps): `timesteps[k:]` is that of a loop
    which begins with step k. So has any solver where a pipeline gives sigmas or timesteps, since such a pipeline takes
    the list's length for the number of steps. What a pipeline changes in a sample between two steps (inpainting) is
    kept. Samples of half precision are the rounded ones of a loop in float32.

    Attributes:
        config: of the scheduler that it replaces, or num_train_timesteps, prediction_type and use_dynamic_shifting.
        timesteps: the network's time at each evaluation; of an adaptive solver those known so far, which grow as it is
            iterated over.
        order: evaluations of a step.
        num_inference_steps: steps of the loop.
        begin_index: index in timesteps of the first evaluation, as a pipeline set it; None to find it by the timestep.
        like: the scheduler that it replaces, or None.
    """

    def __init__(self, solver: Solver, timetable: Timetable, seed: int = 0, like: Any = None):
        self.solver, self.timetable, self.seed, self.like = solver, timetable, seed, like
        self.path, self.parameterisation, _ = timetable.schedule
        kind = type(self.parameterisation).__name__
        self.config = like.config if like is not None else Config(
            num_train_timesteps=1000,
            prediction_type=PREDICTION_TYPES.get(kind, kind),
            use_dynamic_shifting=bool(getattr(timetable, "use_dynamic_shifting", False)),
        )  # fmt: skip
        self.timesteps: Any = None
        self.times = torch.linspace(self.path.t1, 0.0, 5, dtype=torch.float64)  # until set_timesteps gives the grid's
        self.order = 1 if solver.nfe(4) is None else evaluations_per_step(self.plan()) or 1
        self.num_inference_steps = 0
        self.begin_index: int | None = None
        self.device: torch.device | str | None = None
        self.pending: MissingPrediction | None = None

    def __repr__(self) -> str:
        of = f", in place of {type(self.like).__name__}" if self.like is not None else ", which no pipeline can save"
        return f"Scheduler({self.solver}{of})"

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Save the scheduler that it replaces, and warn of that.

        Args:
            save_directory, push_to_hub, **options: as of diffusers' schedulers.
        """
        kind = type(self.like).__name__
        warnings.warn(f"{self} is saved as {kind}: call as_scheduler again after loading", stacklevel=2)
        self.like.save_pretrained(save_directory, push_to_hub=push_to_hub, **options)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the sample that a pipeline starts with."""
        return self.timetable.start_std(self.times[0])

    @property
    def schedule(self) -> ForeignSchedule:
        """Path, parameterisation and unit of time, for gen.diffusion.foreign_schedule."""
        return self.timetable.schedule

    @property
    def sigmas(self) -> Tensor:
        """Noise levels at each evaluation and at the end, as `set_timesteps` takes them; Wan's pipeline reads them."""
        known = self._planned() or self._made() or [self.times[0]]
        times = torch.stack([*(t.amax() for t in known), self.times[-1]])
        return self.path.sigma(times) / (1 if isinstance(self.path, Flow) else self.path.alpha(times))

    @property
    def step_index(self) -> int | None:
        """The index in timesteps of the next evaluation; None before the first."""
        return None if self.pending is None else self.first_step * self.order + len(self.evaluated)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the loop at an index of timesteps; UserError for one inside a step."""
        if begin_index % self.order or not 0 <= begin_index <= self.order * (len(self.times) - 1):
            raise UserError(
                f"begin index {begin_index}: a loop of {len(self.times) - 1} steps of {self.order} evaluations "
                f"begins at a multiple of {self.order}"
            )
        self.begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
        **unknown: Any,
    ) -> None:
        """Prepare a loop of so many steps of the solver, or from given time to given time, the last being 0.

        Args:
            num_inference_steps: steps of the grid; may be left out beside timesteps or sigmas.
            device: of `timesteps`.
            timesteps: the network's times at the begin of each step, falling.
            sigmas: instead of these, noise levels: sigma on a flow path, sigma / alpha on others; falling, 0 at the end
                or not. A grid's shift is applied to them.
            mu: logarithm of the factor that shifts all times, under use_dynamic_shifting.
            **unknown: refused by their names.
        """
        request = Request(num_inference_steps, timesteps, sigmas, mu)
        if unknown:
            raise UserError(f"set_timesteps: {', '.join(unknown)} given; it takes {', '.join(Request._fields)}, device")
        self.times = self.timetable.times(request)
        steps = len(self.times) - 1
        self.num_inference_steps, self.begin_index, self.device = steps, None, device
        self.first_step, self.step_now, self.state = 0, 0, self.solver.init()
        self.x: Tensor | None = None
        self.predictions: list[Prediction] = []
        self.pending = None
        self.evaluated: list[Tensor] = []
        self.drawn: Tensor | None = None
        self.planned: list[tuple[Tensor, Tensor | None]] = []
        custom = timesteps is not None or sigmas is not None
        if self.solver.nfe(steps) is None:
            self.order, self.timesteps = 1, LiveTimesteps(self, custom)
            return
        plan = self.plan()
        self.planned = list(itertools.chain.from_iterable(plan))
        listed, order = self.listed(self.planned), evaluations_per_step(plan)
        several = order != 1
        order = 1 if order is None or custom else order
        self.order = order
        self.timesteps = StepwiseTimesteps.of(listed, self, custom) if several else listed

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the network's input for a sample [B, ...]: c_in of EDM times it, otherwise the sample."""
        if self.pending:
            t = self.pending.t
        elif timestep is None or self.begin_index is not None:
            t = self.times[self._step_at(timestep)]
        else:
            listed = torch.stack([*self.times[:-1], *self._planned()])
            t = listed[self._find(timestep, listed, "is not listed; listed are")]
        return expand(self.parameterisation.scale(self.path, t), sample) * sample

    @property
    def target(self) -> Tensor | None:
        """The time `s` that a flow map jumps to at the next evaluation; None for other solvers."""
        s = self.pending.s if self.pending else self.planned[self.begin_index or 0][1] if self.planned else None
        return None if s is None else self.to_network(s)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        **unknown: Any,
    ) -> Output:
        """Return the sample of the next timestep from the network's output at this one; all [B, ...].

        Raises UserError before set_timesteps, after the last step, for a timestep that begins no step, and for
        arguments that it does not know.
        """
        if unknown:
            raise UserError(f"step: {', '.join(unknown)} given; it takes generator and return_dict beside the tensors")
        if self.timesteps is None or not self.running:
            raise UserError("this loop is over or was never begun: call set_timesteps")
        if self.pending is None:
            self._begin(timestep, sample, generator)
        pending, x = self.pending, self.x
        assert pending is not None and x is not None
        seen = sample if sample.dtype == x.dtype else pending.x + (sample - pending.x.to(sample.dtype)).to(x.dtype)
        if not self.predictions:
            self.x = seen if pending.x is x else x + (seen - pending.x)
        pred = self.parameterisation.solve(self.path, seen, model_output.to(x.dtype), pending.t)
        self.predictions.append(pred)
        self.evaluated.append(pending.t)
        return Output(self._advance(generator).to(sample.dtype), pred.x0.to(sample.dtype))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t of data [B, ...] at timesteps [B] or 0-d, each one of those listed."""
        times = torch.cat([t.reshape(-1).to(self.times) for t in (*self.times[:-1], *self._planned(), *self._made())])
        t = torch.stack([times[self._find(v, times, "is not listed; listed are")] for v in timesteps.reshape(-1)])
        return self.path.mix(original_samples, noise, t.to(original_samples.device))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise` under the name and in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    @property
    def position(self) -> tuple[int, int] | None:
        """Step and stage of the evaluation at hand; None before the first."""
        return None if self.pending is None else (self.step_now, len(self.predictions))

    @property
    def running(self) -> bool:
        """Whether evaluations of this loop are left."""
        return self.step_now < len(self.times) - 1

    def to_network(self, t: Tensor) -> Tensor:
        """Return the network's time for t, 0-d or [B]."""
        dtype = torch.float32 if torch.device(self.device or "cpu").type == "mps" else self.timetable.dtype
        return self.timetable.to_network(t).to(device=self.device, dtype=dtype)

    def _planned(self) -> list[Tensor]:
        """Return the times of all evaluations of a loop from the first step, if they are known before it."""
        return [t for t, _ in self.planned]

    def _made(self) -> list[Tensor]:
        """Return the times of the evaluations until now, and that of the next one."""
        return [*self.evaluated, *([] if self.pending is None else [self.pending.t])]

    def listed(self, evaluations: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Return the network's times of planned evaluations, [n]."""
        return self.to_network(torch.stack([t for t, _ in evaluations]) if evaluations else self.times[:0])

    def plan(self, first: int = 0) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Return t and s of every evaluation of each step, recorded in a loop from step `first` without a network."""
        steps: list[list[tuple[Tensor, Tensor | None]]] = []

        def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
            steps[-1].append((t, s))
            return Prediction(torch.zeros_like(x), x)

        x, state = torch.ones(1, 1, dtype=torch.float64), self.solver.init()
        for t, s in itertools.pairwise(self.times[first:]):
            steps.append([])
            x, state = self.solver.step(evaluate, self.path, x, t, s, state, x.new_zeros(1, 1).clone)
        return steps

    def _begin(self, timestep: Any, sample: Tensor, generator: Generators) -> None:
        """Begin with the first evaluation, which a pipeline makes before any step."""
        self.first_step = self.step_now = self._step_at(timestep)
        self.x = start = sample.to(torch.promote_types(sample.dtype, torch.float32))
        first = self._advance(generator)
        if not torch.allclose(first, start, rtol=1e-5, atol=1e-5):  # a change of variables and back may round
            name = type(self.solver).__name__
            raise UserError(f"{name} changes the sample before its first evaluation (churn?), which no pipeline awaits")

    def _advance(self, generator: Generators) -> Tensor:
        """Run on until a prediction is missing; return x of that evaluation, or of the end."""
        while self.running:
            x, i = self.x, self.step_now
            assert x is not None
            try:
                t, s = self.times[i], self.times[i + 1]
                self.x, self.state = self.solver.step(
                    replay(self.predictions),
                    self.path,
                    x,
                    t,
                    s,
                    self.state,
                    functools.partial(self._noise, x, generator),
                )
            except MissingPrediction as pending:
                self.pending = pending
                return pending.x
            self.step_now, self.predictions, self.drawn = i + 1, [], None
        assert self.x is not None
        return self.x

    def _noise(self, x: Tensor, generator: Generators) -> Tensor:
        """Return this step's unit noise, the same in every replay of it."""
        if self.drawn is None:
            if generator is None:
                drawn = Noise(tuple(sample_seeds(self.seed, len(x)))).normal(self.step_now, x.shape[1:])
            elif isinstance(generator, list):
                drawn = torch.cat([torch.randn((1, *x.shape[1:]), generator=g, device=g.device) for g in generator])
            else:
                drawn = torch.randn(x.shape, generator=generator, device=generator.device)
            self.drawn = drawn.to(x)
        return self.drawn

    def _step_at(self, timestep: Any) -> int:
        """Return the step that a loop begins with: that of the begin index, or else the one at a timestep."""
        if self.begin_index is not None:
            return self.begin_index // self.order
        return 0 if timestep is None else self._find(timestep, self.times[:-1], "begins no step; those that do:")

    def _find(self, timestep: Any, times: Tensor, otherwise: str) -> int:
        """Return the index in times [n] of a network's time."""
        value, own = float(timestep), self.to_network(times).double().cpu()
        near = (own - value).abs() <= 1e-6 * own.abs().clamp(min=1e-6)
        if not bool(near.any()):
            distinct = [f"{v:g}" for v in own.unique().flip(0).tolist()]
            some = distinct if len(distinct) <= 20 else [*distinct[:10], "...", *distinct[-5:]]
            raise UserError(f"timestep {value:g} {otherwise} {', '.join(some)}")
        return int(near.nonzero()[0])


def replay(predictions: list[Prediction]) -> DenoiseFn:
    """Return a denoiser that has some predictions, and raises MissingPrediction for the next."""
    left = iter(predictions)

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        for pred in left:
            return pred
        raise MissingPrediction(x, t, s)

    return evaluate
