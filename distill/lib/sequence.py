"""A sequence of teachers, and the loading of one network's weights into another, which reports what it did."""

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

__all__ = ["KeyMatch", "TeacherSequence", "degradation_checkpoints", "load_matching"]


class KeyMatch(NamedTuple):
    """The keys of a network's weights: loaded, without a value, and given without a parameter of that name."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} keys matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"


def load_matching(net: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> KeyMatch:
    """Load weights into a network by name; unlike load_state_dict(strict=False), never nothing in silence.

    Args:
        net: the network, unchanged if an error is raised.
        weights: tensors by name.
        strict: whether keys left over on either side are an error.

    Returns:
        The keys that were loaded, and those that were not.

    Raises:
        UserError: if no key matches, a shape differs, or, if strict, any key is left over.
    """
    ours = net.state_dict()
    match = KeyMatch(
        tuple(key for key in ours if key in weights),
        tuple(key for key in ours if key not in weights),
        tuple(key for key in weights if key not in ours),
    )
    if not match.matched or (strict and (match.missing or match.unexpected)):
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
    """Targets that take turns: each for some updates, then the real teacher for good.

    Attributes:
        targets: denoisers, or checkpoint folders, which are read when their turn comes; the first target comes first.
        hold: updates with each target.
    """

    targets: Sequence[DenoiserLike | Path]
    hold: int

    def index(self, step: int) -> int:
        """Return the index of the target after `step` updates: len(targets) for the real teacher."""
        return min(step // self.hold, len(self.targets))

    def at(self, step: int, teacher: DenoiserLike, device: str = "cpu") -> DenoiserLike:
        """Return the target of the update after `step` updates."""
        index = self.index(step)
        if index == len(self.targets):
            return teacher
        target = self.targets[index]
        return _loaded(target, device) if isinstance(target, Path) else target


def degradation_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a degradation's run, from the least degraded to the most.

    Args:
        folder: of the run.

    Raises:
        UserError: if there are none.
    """
    places = sorted((folder / "checkpoints").glob("step-*"))
    if not places:
        raise UserError(f"{folder} holds no checkpoints of a degradation: gen distill degradation makes them")
    for place in places:
        checkpoints.read(place, verify=False)
    return places


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, device: str) -> DenoiserLike:
    return load_images(folder, weights="raw", device=device).denoiser
