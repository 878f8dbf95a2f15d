"""Moving digits: films of handwritten digits that move at a constant velocity around a torus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.data.digits import Digits
from gen.data.lib.tensors import Tensors, check_split, content_hash
from gen.diffusion.noise import derive

__all__ = ["MovingDigits", "MovingDigitsFilms"]


@dataclass(frozen=True)
class MovingDigits:
    """Films [1, frames, size, size] of digits of 8 x 8 pixels, whose frames are cyclic shifts of the first one.

    Digit, start and velocity are uniform, velocities whole pixels a frame in each direction; where several digits meet,
    the brighter pixel is seen. The label is the last digit's. Film i is a function of (seed, split, i); "train" and
    "test" have the digits of gen.data.digits' splits.

    Attributes:
        frames: of a film.
        size: height and width, at least 8 pixels.
        speed: the most pixels a frame in each direction.
        digits: how many in a film.
        n: films of "train"; "test" has a tenth as many.
        seed: of all draws.
    """

    frames: int = 8
    size: int = 16
    speed: int = 2
    digits: int = 1
    n: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, frames="[1, 1000]", size="[8, 1000]", speed="[0, 100]", digits="[1, 100]",
                     n="[10, 1000000000]")  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.frames, self.size, self.size)

    @property
    def classes(self) -> int:
        return 10

    def open(self, split: str) -> MovingDigitsFilms:
        """Open "train" or "test"."""
        check_split(split)
        return MovingDigitsFilms(self, split, Digits().open(split))

    def path(self, split: str, i: int) -> list[tuple[int, int, int, int, int]]:
        """Return number of the digit, row and column of its start, and its velocity, for each digit of film i."""
        drawn = list[tuple[int, int, int, int, int]]()
        for k in range(self.digits):
            number, row, column, down, right = (derive("moving_digits", self.seed, split, i, k, j) for j in range(5))
            speeds = 2 * self.speed + 1
            drawn.append(
                (number, row % self.size, column % self.size, down % speeds - self.speed, right % speeds - self.speed)
            )
        return drawn


@dataclass(frozen=True, eq=False)
class MovingDigitsFilms:
    """Items {"x": float32 [1, T, S, S] in [-1, 1], "y": int64 0-d}, drawn when they are read.

    Attributes:
        spec: of the films.
        split: "train" or "test".
        source: digits of that split.
    """

    spec: MovingDigits
    split: str
    source: Tensors

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the settings and the digits."""
        return content_hash("moving_digits", repr(self.spec), self.split, self.source.fingerprint)

    def __len__(self) -> int:
        return self.spec.n if self.split == "train" else self.spec.n // 10

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x, y = torch.full(self.spec.shape, -1.0), torch.tensor(0)
        for number, row, column, down, right in self.spec.path(self.split, i):
            item = self.source[number % len(self.source)]
            still, y = torch.full(self.spec.shape[2:], -1.0), item["y"]
            still[:8, :8] = item["x"][0]
            moved = [still.roll((row + k * down, column + k * right), (0, 1)) for k in range(self.spec.frames)]
            x = torch.maximum(x, torch.stack(moved)[None])
        return {"x": x, "y": y}
