"""Merging of adapters: several runs' adapters of one model, added to its weights with a factor each, or by TIES."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError, shown
from gen.config.spec import Json
from gen.config.trust import allowing
from gen.config.writing import Lock
from gen.training.lora import by_layer, merged
from gen.training.run import Run, run_from, run_spec
from gen.training.sources import weights_hash

__all__ = ["adapter_label", "add_adapters", "merge_adapters", "with_adapters"]


def with_adapters(
    base: Mapping[str, Tensor], folder: Path, adapters: Sequence[Any], ties: float | None = None
) -> dict[str, Tensor]:
    """Return the state of a network with the adapters of several runs added in.

    Args:
        base: state of the model that they belong to.
        folder: its folder.
        adapters: pairs of a run's folder, whose adapters are those that gen.load would take, and its factor.
        ties: None adds factor times change; a number in (0, 1] is the share of each run's largest changes that TIES
            keeps, layer by layer, before signs are elected and those that agree are averaged, by peft (Yadav et al.
            2023, arXiv 2306.01708).

    Raises:
        UserError: for runs without adapters, or with adapters of other weights.
    """
    pairs = [_pair(given) for given in adapters]
    if not pairs:
        raise UserError("adapters = []; allowed: pairs of a run's folder and its factor")
    if ties is not None and not (isinstance(ties, (int, float)) and 0 < ties <= 1):
        raise UserError(f"ties = {shown(ties)}; allowed: in (0, 1], or None")
    wanted, changes = weights_hash(folder), dict[str, list[tuple[float, Tensor]]]()
    for run, factor in pairs:
        for name, change in _changes(base, folder, wanted, run).items():
            changes.setdefault(name, []).append((factor, change))
    return dict(base) | {
        name: (base[name] + _joined(some, ties)).to(base[name].dtype) for name, some in changes.items()
    }


def add_adapters(
    net: nn.Module, run: Run, weights: str, folder: Path, adapters: Sequence[Any], ties: float | None
) -> Json:
    """Add the adapters of several runs into a loaded network; return which, as a record says it.

    Args:
        net: changed in place.
        run: of its folder.
        weights: label of those that were loaded.
        folder, adapters, ties: see `with_adapters`.

    Raises:
        UserError: as there, and for weights that are not the folder's first, or not whole on one device.
    """
    state = net.state_dict()
    first = run.ema[0].label if run.ema else "raw"
    if weights != first or any(type(tensor) is not Tensor or tensor.is_meta for tensor in state.values()):
        raise UserError(
            "adapters belong to a model's first weights, on one device: leave out weights, tensor_parallel, max_memory"
        )
    net.load_state_dict(with_adapters(state, folder, adapters, ties), assign=True)
    return _about(adapters, ties)


def adapter_label(run: Json) -> str:
    """Return the name and the factor of a run's adapters, "style 0.7".

    Args:
        run: one of the "runs" that `add_adapters` returned.
    """
    return f"{Path(run['folder']).resolve().name} {run['factor']:g}"


def _about(adapters: Sequence[Any], ties: float | None) -> Json:
    """Return folder, factor and the manifest's digest of each run, and the share of TIES."""
    pairs = [_pair(given) for given in adapters]
    runs = [
        {"folder": str(folder), "factor": factor, "sha256": checkpoints.manifest_of(folder)["sha256"]}
        for folder, factor in pairs
    ]
    return {"runs": runs, "ties": ties}


def _pair(given: Any) -> tuple[Path, float]:
    """Return a run's folder and its factor."""
    folder, factor = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, None)
    if not isinstance(folder, (str, Path)) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
        raise UserError(f"adapters: {shown(given)}; allowed: a pair of a run's folder and its factor, a number")
    return Path(folder), float(factor)


def _changes(base: Mapping[str, Tensor], folder: Path, wanted: str, run_folder: Path) -> dict[str, Tensor]:
    """Return by how much a run's adapters change each weight, in float32 at least."""
    checkpoint = checkpoints.locate(run_folder)
    info = checkpoints.read(checkpoint)
    run = run_from(info["run"], run_folder)
    if run.lora is None:
        raise UserError(f"adapters: {run_folder} has none, it trained all weights of its network")
    if info["sources"].get("init") != wanted:
        raise UserError(f"adapters: those of {run_folder} belong to other weights than those of {folder}")
    file = f"{info['role']}{f'-{run.ema[0].label}' if run.ema else ''}.safetensors"
    adapters = checkpoints.read_tensors(checkpoint, file, info)
    names = [f"{name}.weight" for name, _ in by_layer(adapters)]
    wide = {name: base[name].to(torch.promote_types(base[name].dtype, torch.float32)) for name in names if name in base}
    return {name: tensor - wide[name] for name, tensor in merged(wide, adapters, run.lora).items()}


def _joined(changes: Sequence[tuple[float, Tensor]], ties: float | None) -> Tensor:
    """Return one change of a weight of several and their factors."""
    if ties is None:
        return torch.stack([factor * change for factor, change in changes]).sum(0)
    from peft.utils.merge_utils import ties as elected

    factors = torch.tensor([factor for factor, _ in changes], device=changes[0][1].device)
    out: Tensor = elected([change for _, change in changes], factors, ties)
    return out


def merge_adapters(
    base: str | Path, adapters: Sequence[Any], out: str | Path, *, ties: float | None = None, allow: Sequence[str] = ()
) -> Path:
    """Write a model with the adapters of several runs added into its weights: a folder that gen.load and exports read.

    Args:
        base: folder of the model that they belong to.
        adapters, ties: see `with_adapters`.
        out: the new folder.
        allow: as of gen.load.

    Returns:
        The folder.

    Raises:
        UserError: as of `with_adapters`, and if the folder is there.
    """
    from gen.pipeline import load  # which imports this

    base, out = Path(base), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder")
    with allowing(allow):
        pipeline = load(base, allow=allow)
        net = pipeline.denoiser.net if hasattr(pipeline, "denoiser") else pipeline.net
        info, checkpoint = checkpoints.manifest_of(base), checkpoints.locate(base)
        files = {f"{info['role']}.safetensors": with_adapters(net.state_dict(), base, adapters, ties)}
        others = {name: (checkpoint / name).read_bytes() for name in info["files"] if not name.endswith(".safetensors")}
        rest = {key: value for key, value in info.items() if key not in ("format", "files", "sha256", "val_loss")}
        run = replace(run_from(info["run"], base), ema=(), lora=None)
    used = {"base": str(base), **_about(adapters, ties)}
    with Lock(out.with_name(f".lock-{out.name}"), out):
        checkpoints.write(out, files, {**rest, "run": run_spec(run), "val_loss": None, "merged": used}, others)
    return out
