"""The noise of a step, drawn while the step before is computed: a GPU trains, and the host has nothing else to do.

Noise is drawn on the CPU, so that a seed means the same bits on every device. What the next step will ask for is what
the step before has asked for, of other samples; what it does not ask for is dropped, and what is not there is drawn as
it is asked for. So the numbers are those of gen.diffusion.noise, however little is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gen.diffusion.noise import Noise, training_noise

__all__ = ["NoiseAhead", "StepNoise", "noise_of_steps", "step_noise"]

Draw = tuple[int | str, tuple[int, ...] | int | None]  # name; shape of normal numbers, or n of uniform ones
Indices = list[list[int]]  # of each micro-batch's samples
StepNoise = Callable[[int, Indices], Sequence[Noise]]  # of the micro-batches of a step


def step_noise(seed: int, step: int, indices: Indices) -> list[Noise]:
    """Return the noise of a step's micro-batches.

    Args:
        seed, step: see gen.diffusion.noise.training_noise.
        indices: positions of each micro-batch's samples in the stream of data.
    """
    return [training_noise(seed, step, part) for part in indices]


@dataclass(frozen=True)
class DrawnNoise(Noise):
    """Noise of which some draws are there already.

    Attributes:
        seeds: one per sample.
        drawn: numbers by draw, each of them given once.
        asked: draws that were asked for.
    """

    drawn: dict[Draw, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)
    asked: list[Draw] = field(default_factory=list, init=False, compare=False, repr=False)

    def normal(self, name: int | str, shape: Sequence[int]) -> Tensor:
        return self._take((name, tuple(shape)))

    def uniform(self, name: int | str, n: int | None = None) -> Tensor:
        return self._take((name, n))

    def _take(self, draw: Draw) -> Tensor:
        self.asked.append(draw)
        known = self.drawn.pop(draw, None)
        return self.draw(draw) if known is None else known

    def draw(self, draw: Draw) -> Tensor:
        """Return the numbers of a draw, drawn now."""
        name, how = draw
        return super().normal(name, how) if isinstance(how, tuple) else super().uniform(name, how)


class NoiseAhead:
    """The noise of a process's micro-batches, step by step, drawn by a thread a step ahead.

    Args:
        seed: the run's.
        processes: how many share a step; positions go on from step to step by the samples of all.
        pin: whether to draw into pinned memory, from which a GPU copies without the host's waiting.
    """

    def __init__(self, seed: int, processes: int, pin: bool) -> None:
        self._seed, self._processes, self._pin = seed, processes, pin
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gen noise")
        self._last: list[DrawnNoise] = []
        self._next: tuple[int, Indices, Future[list[DrawnNoise]]] | None = None

    def __call__(self, step: int, indices: Indices) -> list[DrawnNoise]:
        """Return the noise of a step's micro-batches, and have that of the next step drawn.

        Args:
            step, indices: as of `step_noise`.
        """
        asked = list(dict.fromkeys(draw for noise in self._last for draw in noise.asked))
        known, self._next = self._next, None
        self._last = known[2].result() if known and known[:2] == (step, indices) else self._draw(step, indices, [])
        samples = self._processes * sum(map(len, indices))
        then = [[i + samples for i in part] for part in indices]
        self._next = step + 1, then, self._pool.submit(self._draw, step + 1, then, asked)
        return self._last

    def _draw(self, step: int, indices: Indices, draws: list[Draw]) -> list[DrawnNoise]:
        noises = [DrawnNoise(noise.seeds) for noise in step_noise(self._seed, step, indices)]
        for noise in noises:
            for draw in draws:
                numbers = noise.draw(draw)
                noise.drawn[draw] = numbers.pin_memory() if self._pin else numbers
        return noises


def noise_of_steps(seed: int, processes: int, device: torch.device) -> StepNoise:
    """Return a run's noise, drawn ahead for a GPU; a CPU has no time to draw beside the step.

    Args:
        seed, processes: as of `NoiseAhead`.
        device: of the networks.
    """
    return NoiseAhead(seed, processes, pin=True) if device.type == "cuda" else partial(step_noise, seed)
