"""A sequence of teachers, and the loading of one network's weights into another, which says what it did."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.diffusion.denoiser import DenoiserLike
from gen.pipeline import load_images

__all__ = ["Match", "TeacherSequence", "fill", "recorded"]


class Match(NamedTuple):
    """The keys of a network's weights: loaded, without a value, and given for nothing."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} keys matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"


def fill(net: nn.Module, weights: Mapping[str, Tensor], whole: bool = True) -> Match:
    """Puts weights into a network by name, and says which: nothing is passed over in silence.

    Raises UserError if no key matches, or a shape differs, or, where the `whole` network is to be filled, any key is
    left over on either side; then the network is as it was.
    """
    ours = net.state_dict()
    match = Match(
        tuple(key for key in ours if key in weights),
        tuple(key for key in ours if key not in weights),
        tuple(key for key in weights if key not in ours),
    )
    if not match.matched or (whole and (match.missing or match.unexpected)):
        left = [*match.missing[:1], *match.unexpected[:1]]
        raise UserError(f"the weights do not fit the network: {match}, such as {' and '.join(left)}")
    differs = [key for key in match.matched if ours[key].shape != weights[key].shape]
    if differs:
        shapes = f"{list(weights[differs[0]].shape)}, not {list(ours[differs[0]].shape)}"
        raise UserError(f"the weights do not fit the network: {differs[0]} is {shapes}")
    net.load_state_dict({key: weights[key] for key in match.matched}, strict=False)
    return match


@dataclass(frozen=True)
class TeacherSequence:
    """Targets that take turns: each for `hold` updates, then the real teacher for good.

    targets: denoisers, or checkpoint folders, which are read when their turn comes; the first target comes first.
    """

    targets: Sequence[DenoiserLike | Path]
    hold: int

    def turn(self, step: int) -> int:
        """How many targets have had their turn after `step` updates: len(targets) for the real teacher."""
        return min(step // self.hold, len(self.targets))

    def at(self, step: int, teacher: DenoiserLike, device: str = "cpu") -> DenoiserLike:
        """The target of the update after `step` updates."""
        turn = self.turn(step)
        if turn == len(self.targets):
            return teacher
        target = self.targets[turn]
        return _loaded(target, device) if isinstance(target, Path) else target


def recorded(folder: Path) -> list[Path]:
    """The checkpoints of a degradation's run, from the least degraded to the most. UserError if there are none."""
    found = sorted((folder / "checkpoints").glob("step-*"))
    if not found:
        raise UserError(f"{folder} holds no checkpoints of a degradation: gen distill degradation makes them")
    for place in found:
        checkpoints.read(place, verify=False)
    return found


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, device: str) -> DenoiserLike:
    return load_images(folder, weights="raw", device=device).denoiser
