"""Averages of any length after training: post-hoc EMA (Karras et al. 2024, "EDM2", section 3).

A run with two power-function averages (gen.training.ema.Power) leaves, in each checkpoint, two known weightings of its
whole past. Any other weighting is their combination by least squares, and so are the weights it would have averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.config.writing import Lock
from gen.training.ema import EMA, Power
from gen.training.run import run_from, run_spec

__all__ = ["Reconstruction", "coefficients", "reconstruct"]


@dataclass(frozen=True)
class Reconstruction:
    """The result of `reconstruct`.

    Attributes:
        folder: where the checkpoint is.
        step: the update at which the average ends.
        std: relative standard deviation of the average.
        checkpoints, profiles: how many of each were combined.
        error: relative L2 distance between the wanted and the obtained weighting.
    """

    folder: Path
    step: int
    std: float
    checkpoints: int
    profiles: int
    error: float


def reconstruct(
    run: str | Path,
    std: float,
    out: str | Path,
    *,
    step: int | None = None,
    labels: Sequence[str] | None = None,
    limit: float = 0.1,
) -> Reconstruction:
    """Write the checkpoint, ready for gen.load, that an average Power(std) would have had.

    Args:
        run: a run folder whose `ema` has two or more Power profiles and whose `keep` was large enough: a long average
            (large std) needs early checkpoints.
        std: relative standard deviation of the wanted average.
        out: the folder to write.
        step: of one of the run's checkpoints; the newest by default.
        labels: the profiles to combine; all by default.
        limit: the largest `error` that is accepted.

    Raises:
        UserError: if profiles or checkpoints are too few to come within the limit.
    """
    wanted, out = Power(std=std), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder")
    line = checkpoints.lineage(Path(run) / "checkpoints")
    manifests = {manifest["step"]: (folder, manifest) for folder, manifest in line.items()}
    if not manifests:
        raise UserError(f"{run} holds no checkpoints of a training: give the folder of a run")
    last = max(manifests) if step is None else step
    if last not in manifests:
        raise UserError(f"{run} has no checkpoint of step {last}; it has {', '.join(map(str, manifests))}")
    newest, info = manifests[last]
    profiles = _profiles(Path(run), run_from(info["run"], run).ema, labels)
    known = [(s, p) for s in sorted(manifests) if s <= last for p in profiles]
    weights, error = coefficients([s for s, _ in known], [p.gamma for _, p in known], last, wanted.gamma)
    if error > limit:
        raise UserError(
            f"{run}: {len(known) // len(profiles)} checkpoints with {len(profiles)} averages come no closer than "
            f"{error:.0%} to std {std:g} at step {last}; Run.keep decides how many stay"
        )
    role = info["role"]
    total: dict[str, Tensor] = {}
    for (s, profile), weight in zip(known, weights.tolist(), strict=True):
        folder, manifest = manifests[s]
        _add(total, weight, checkpoints.read_tensors(folder, f"{role}-{profile.label}.safetensors", manifest))
    raw = checkpoints.read_tensors(newest, f"{role}.safetensors", info)
    average = {k: total[k].to(v.dtype) if v.is_floating_point() else v for k, v in raw.items()}
    files = {f"{role}.safetensors": raw, f"{role}-{wanted.label}.safetensors": average}
    with Lock(out.with_name(f".lock-{out.name}"), out):
        checkpoints.write(out, files, _manifest(info, Path(run), wanted, known, error))
    return Reconstruction(out, last, std, len(known) // len(profiles), len(profiles), error)


def coefficients(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> tuple[Tensor, float]:
    """Combine averages to another one by least squares over their weightings (algorithm 3 there).

    Args:
        steps, gammas: update and exponent of each stored average.
        step, gamma: of the wanted one.

    Returns:
        The coefficient of each average, float64, summing to 1, and the relative L2 distance of the weightings.
    """
    t, g = torch.tensor(steps, dtype=torch.float64), torch.tensor(gammas, dtype=torch.float64)
    end, wanted = torch.tensor([step], dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64)
    gram, cross = _products(t, g, t, g), _products(t, g, end, wanted)[:, 0]
    weights = torch.linalg.lstsq(gram, cross[:, None], driver="gelsd").solution[:, 0]
    weights = weights / weights.sum()
    square = _products(end, wanted, end, wanted)[0, 0]
    rest = square - 2 * weights @ cross + weights @ gram @ weights
    return weights, float((rest.clamp(min=0) / square).sqrt())


def _products(t: Tensor, g: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """The integrals of weighting (t, g)[i] times weighting (s, h)[j], with weighting (g + 1) x^g / t^(g + 1) on [0, t].

    (Equation 151 there.)
    """
    t, g, s, h = t[:, None], g[:, None], s[None], h[None]
    power = torch.where(t < s, h, -g)
    return (g + 1) * (h + 1) * (t / s) ** power / ((g + h + 1) * torch.maximum(t, s))


def _profiles(run: Path, averages: Sequence[EMA], labels: Sequence[str] | None) -> list[Power]:
    """The profiles to combine."""
    powers = {average.label: average for average in averages if isinstance(average, Power)}
    for label in labels or ():
        if label not in powers:
            raise UserError(f"{run} has no power average {label!r}; it has {', '.join(powers) or 'none'}")
    chosen = [profile for label, profile in powers.items() if labels is None or label in labels]
    if len(chosen) < 2:
        raise UserError(
            f"{run}: {len(chosen)} power averages given where two are needed: train with "
            '--ema \'[{"name": "power", "std": 0.05}, {"name": "power", "std": 0.1}]\''
        )
    return chosen


def _add(total: dict[str, Tensor], weight: float, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_floating_point():
            total[key] = total.get(key, torch.zeros((), dtype=torch.float64)) + weight * value.double()


def _manifest(info: Json, folder: Path, wanted: Power, known: Sequence[tuple[int, Power]], error: float) -> Json:
    """The manifest: that of the newest checkpoint used, with this average in place of its own."""
    run = replace(run_from(info["run"], folder), ema=(wanted,))
    rest = {k: v for k, v in info.items() if k not in ("format", "files", "sha256", "val_loss")}
    used = {"steps": sorted({s for s, _ in known}), "averages": sorted({p.label for _, p in known}), "error": error}
    return rest | {"run": run_spec(run), "val_loss": None, "reconstructed": used}
