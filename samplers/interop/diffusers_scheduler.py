"""A solver as a scheduler object of diffusers.

A solver pulls: its step calls the denoiser as often as it likes. A pipeline pushes: it evaluates the network at each of
`timesteps` and passes the output in. The two meet by replay. The predictions received in this step are kept and the
solver's step is run again with them; the first evaluation without a prediction ends it and is the pipeline's next one.
Solvers are pure and cheap beside a network, so replay changes no bit of the result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.contracts import DenoiseFn, Grid, Solver
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["Output", "Scheduler", "as_scheduler"]


class Output(NamedTuple):
    """The result of `Scheduler.step`, read by name or as a tuple.

    Attributes:
        prev_sample: x of the next evaluation, [B, ...].
        pred_original_sample: predicted x0.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class MissingPrediction(Exception):
    """The end of a replay: the evaluation that is needed next."""

    def __init__(self, x: Tensor, t: Tensor, s: Tensor | None):
        super().__init__()
        self.x, self.t, self.s = x, t, s


def as_scheduler(
    solver: Solver,
    path: NoisePath,
    parameterisation: Parameterisation,
    grid: Grid,
    *,
    seed: int = 0,
    time_scale: float = 1.0,
) -> Scheduler:
    """Return a scheduler for a pipeline of diffusers: `pipe.scheduler = as_scheduler(solver, DDPM(), Eps(), grid)`.

    Args:
        solver: of samplers/solvers.
        path, parameterisation: those of the pipeline's network.
        grid: of samplers/grids.
        seed: of the noise of stochastic solvers, unless the pipeline passes a generator to `step`.
        time_scale: the network's time is path.t_to_network(t) times this, which is 1000 for diffusers' flow
            transformers and 1 for those of DDPM.
    """
    return Scheduler(solver, path, parameterisation, grid, seed, time_scale)


class Scheduler:
    """A solver with the members that pipelines of diffusers use, from set_timesteps to add_noise.

    `timesteps` lists every evaluation, so a two-stage solver has about twice as many as steps. For a solver that
    chooses its steps as it goes (adaptive) it is an iterable, each known once the one before has its prediction. What a
    pipeline changes in a sample between two steps (inpainting) is kept.
    """

    order = 1

    def __init__(
        self,
        solver: Solver,
        path: NoisePath,
        parameterisation: Parameterisation,
        grid: Grid,
        seed: int = 0,
        time_scale: float = 1.0,
    ):
        self.solver, self.path, self.parameterisation, self.grid = solver, path, parameterisation, grid
        self.seed, self.time_scale = seed, time_scale
        self.config: dict[str, Any] = {"num_train_timesteps": 1000, "prediction_type": type(parameterisation).__name__}
        self.timesteps: Any = None
        self.times = torch.tensor([path.t1, 0.0], dtype=torch.float64)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the sample that a pipeline starts with."""
        return float(self.path.sigma(self.times[0]))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare a loop of so many steps of the solver."""
        self.times = self.grid.times(self.path, num_inference_steps)
        self.step_index, self.state = 0, self.solver.init()
        self.x: Tensor | None = None
        self.predictions: list[Prediction] = []
        self.pending: MissingPrediction | None = None
        self.drawn: Tensor | None = None
        self.planned: list[tuple[Tensor, Tensor | None]] = []
        if self.solver.nfe(num_inference_steps) is None:
            self.timesteps = LiveTimesteps(self, device)
        else:
            self.planned = self._evaluations()
            self.timesteps = torch.stack([self._to_network(t, device) for t, _ in self.planned])

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the network's input for a sample [B, ...]: c_in of EDM times it, otherwise the sample."""
        t = self.pending.t if self.pending else self.times[0 if timestep is None else self._step_at(timestep)]
        return expand(self.parameterisation.scale(self.path, t), sample) * sample

    @property
    def target(self) -> Tensor | None:
        """The time `s` that a flow map jumps to at the next evaluation; None for other solvers."""
        s = self.pending.s if self.pending else self.planned[0][1] if self.planned else None
        return None if s is None else self._to_network(s, None)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **unused: Any,
    ) -> Output:
        """Return the sample of the next timestep from the network's output at this one; all [B, ...].

        Raises UserError before set_timesteps, after the last step, and for a timestep that begins no step.
        """
        if self.timesteps is None or self.step_index >= len(self.times) - 1:
            raise UserError("this loop is over or was never begun: call set_timesteps")
        if self.pending is None:
            self._begin(timestep, sample, generator)
        pending, x = self.pending, self.x
        assert pending is not None and x is not None
        if not self.predictions:
            self.x = sample if pending.x is x else x + (sample - pending.x)
        pred = self.parameterisation.solve(self.path, sample, model_output, pending.t)
        self.predictions.append(pred)
        return Output(self._advance(generator), pred.x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t of data [B, ...] at timesteps [B] or 0-d that begin a step."""
        steps = torch.tensor([self._step_at(t) for t in timesteps.reshape(-1)])
        return self.path.mix(original_samples, noise, self.times[steps].to(original_samples.device))

    def _begin(self, timestep: Any, sample: Tensor, generator: torch.Generator | None) -> None:
        """Begin with the first evaluation, which a pipeline makes before any step."""
        self.step_index, self.x = self._step_at(timestep), sample
        first = self._advance(generator)
        if not torch.allclose(first, sample, rtol=1e-5, atol=1e-5):  # a change of variables and back may round
            name = type(self.solver).__name__
            raise UserError(f"{name} changes the sample before its first evaluation (churn?), which no pipeline awaits")

    def _advance(self, generator: torch.Generator | None) -> Tensor:
        """Run on until a prediction is missing; return x of that evaluation, or of the end."""
        while self.step_index < len(self.times) - 1:
            x, i = self.x, self.step_index
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
            self.step_index, self.predictions, self.drawn = i + 1, [], None
        assert self.x is not None
        return self.x

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return this step's unit noise, the same in every replay of it."""
        if self.drawn is None:
            if generator is None:
                drawn = Noise(tuple(sample_seeds(self.seed, len(x)))).normal(self.step_index, x.shape[1:])
            else:
                drawn = torch.randn(x.shape, generator=generator, device=generator.device)
            self.drawn = drawn.to(x)
        return self.drawn

    def _to_network(self, t: Tensor, device: torch.device | str | None) -> Tensor:
        exact = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
        return (self.path.t_to_network(t) * self.time_scale).to(device=device, dtype=exact)

    def _step_at(self, timestep: Any) -> int:
        """Return the step that begins with a timestep: 0, but for pipelines that start on the way (image to image)."""
        value = float(timestep)
        begins = [float(self._to_network(t, None)) for t in self.times[:-1]]
        for i, own in enumerate(begins):
            if abs(own - value) <= 1e-6 * max(abs(own), 1e-6):
                return i
        raise UserError(f"timestep {value:g} begins no step; those that do: {', '.join(f'{b:g}' for b in begins)}")

    def _evaluations(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return t and s of every evaluation, recorded in a loop without a network."""
        evaluations = []

        def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
            evaluations.append((t, s))
            return Prediction(torch.zeros_like(x), x)

        x, state = torch.ones(1, 1, dtype=torch.float64), self.solver.init()
        for t, s in itertools.pairwise(self.times):
            x, state = self.solver.step(evaluate, self.path, x, t, s, state, x.new_zeros(1, 1).clone)
        return evaluations


class LiveTimesteps:
    """The timesteps of a solver that decides as it goes, an iterable that is read while `step` is called."""

    def __init__(self, scheduler: Scheduler, device: torch.device | str | None):
        self.scheduler, self.device = scheduler, device

    def __iter__(self) -> Iterator[Tensor]:
        scheduler = self.scheduler
        while scheduler.step_index < len(scheduler.times) - 1:
            yield scheduler._to_network(scheduler.pending.t if scheduler.pending else scheduler.times[0], self.device)


def replay(predictions: list[Prediction]) -> DenoiseFn:
    """Return a denoiser that has some predictions, and raises MissingPrediction for the next."""
    left = iter(predictions)

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        for pred in left:
            return pred
        raise MissingPrediction(x, t, s)

    return evaluate
