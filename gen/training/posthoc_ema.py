"""Averages of any length after training: post-hoc EMA (Karras et al. 2024, "EDM2", section 3).

A run with two power-function averages (gen.training.ema.Power) leaves, in each checkpoint, two known weightings of its
whole past. Any other weighting is their combination by least squares, and so are the weights it would have averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.ema import Power
from gen.training.run import run_from, run_spec

__all__ = ["Reconstruction", "coefficients", "reconstruct"]


@dataclass(frozen=True)
class Reconstruction:
    """Where the weights are, and of what: error is the relative L2 distance between wanted and obtained weighting."""

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
    """Writes to `out` the checkpoint, ready for gen.load, that an average Power(std) would have had.

    run: a run folder whose `ema` has two or more Power profiles, and whose `keep` was large enough: what was pruned is
    lost, and a long average (large std) needs early checkpoints. step: that of one of its checkpoints (default: the
    newest). labels: the profiles to use (default: all). Raises UserError if they are too few, or if what there is could
    not come closer than `limit` to the weighting that is asked for.
    """
    wanted, out = Power(std=std), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder")
    places = sorted((Path(run) / "checkpoints").glob("step-*"))
    infos = {info["step"]: (place, info) for place in places for info in [checkpoints.read(place, verify=False)]}
    if not infos:
        raise UserError(f"{run} holds no checkpoints of a training: give the folder of a run")
    last = max(infos) if step is None else step
    if last not in infos:
        raise UserError(f"{run} has no checkpoint of step {last}; it has {', '.join(map(str, infos))}")
    info = infos[last][1]
    profiles = _profiles(Path(run), run_from(info["run"]).ema, labels)
    known = [(s, p) for s in sorted(infos) if s <= last for p in profiles]
    shares, error = coefficients([s for s, _ in known], [p.gamma for _, p in known], last, wanted.gamma)
    if error > limit:
        raise UserError(
            f"{run}: {len(known) // len(profiles)} checkpoints with {len(profiles)} averages come no closer than "
            f"{error:.0%} to std {std:g} at step {last}; Run.keep decides how many stay"
        )
    role = info["role"]
    total: dict[str, Tensor] = {}
    for (s, profile), share in zip(known, shares.tolist(), strict=True):
        _add(total, share, checkpoints.read_tensors(infos[s][0], f"{role}-{profile.label}.safetensors", infos[s][1]))
    raw = checkpoints.read_tensors(infos[last][0], f"{role}.safetensors", info)
    average = {k: total[k].to(v.dtype) if v.is_floating_point() else v for k, v in raw.items()}
    files = {f"{role}.safetensors": raw, f"{role}-{wanted.label}.safetensors": average}
    checkpoints.write(out, files, _about(info, wanted, known, error))
    return Reconstruction(out, last, std, len(known) // len(profiles), len(profiles), error)


def coefficients(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> tuple[Tensor, float]:
    """How much of each average, of exponent gammas[i] after update steps[i], makes that of `gamma` after `step`.

    Returns the shares, float64 summing to 1, and the relative L2 distance of the weightings (algorithm 3 there).
    """
    t, g = torch.tensor(steps, dtype=torch.float64), torch.tensor(gammas, dtype=torch.float64)
    end, wanted = torch.tensor([step], dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64)
    among, towards = _products(t, g, t, g), _products(t, g, end, wanted)[:, 0]
    shares = torch.linalg.lstsq(among, towards[:, None], driver="gelsd").solution[:, 0]
    shares = shares / shares.sum()
    square = _products(end, wanted, end, wanted)[0, 0]
    rest = square - 2 * shares @ towards + shares @ among @ shares
    return shares, float((rest.clamp(min=0) / square).sqrt())


def _products(t: Tensor, g: Tensor, s: Tensor, h: Tensor) -> Tensor:
    """The integrals of weighting (t, g)[i] times weighting (s, h)[j], with weighting (g + 1) x^g / t^(g + 1) on [0, t].

    (Equation 151 there.)
    """
    t, g, s, h = t[:, None], g[:, None], s[None], h[None]
    power = torch.where(t < s, h, -g)
    return (g + 1) * (h + 1) * (t / s) ** power / ((g + h + 1) * torch.maximum(t, s))


def _profiles(run: Path, averages: Sequence[Any], labels: Sequence[str] | None) -> list[Power]:
    """The averages to combine."""
    there = {average.label: average for average in averages if isinstance(average, Power)}
    for label in labels or ():
        if label not in there:
            raise UserError(f"{run} has no power average {label!r}; it has {', '.join(there) or 'none'}")
    chosen = [profile for label, profile in there.items() if labels is None or label in labels]
    if len(chosen) < 2:
        raise UserError(
            f"{run}: {len(chosen)} power averages given where two are needed: train with "
            '--ema \'[{"name": "power", "std": 0.05}, {"name": "power", "std": 0.1}]\''
        )
    return chosen


def _add(total: dict[str, Tensor], share: float, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if value.is_floating_point():
            total[key] = total.get(key, torch.zeros((), dtype=torch.float64)) + share * value.double()


def _about(info: dict[str, Any], wanted: Power, known: Sequence[tuple[int, Power]], error: float) -> dict[str, Any]:
    """The manifest: that of the newest checkpoint used, with this average in place of its own."""
    run = replace(run_from(info["run"]), ema=(wanted,))
    rest = {k: v for k, v in info.items() if k not in ("format", "files", "sha256", "val_loss")}
    used = {"steps": sorted({s for s, _ in known}), "averages": sorted({p.label for _, p in known}), "error": error}
    return rest | {"run": run_spec(run), "val_loss": None, "reconstructed": used}
