"""Runs that an older gen wrote: what their specs said otherwise, so that their weights load all the same."""

from __future__ import annotations

from collections.abc import Mapping

from gen.config.errors import UserError

__all__ = ["check_resumable", "translated"]

CERTAINTY = ("dparallel", "trajectory")  # distillers that had an option of their own, lora_rank, for adapters


def translated(spec: object) -> object:
    """Return the spec of a run as it is written today.

    Args:
        spec: of any age. One with `objective.lora_rank` has the adapters in net.safetensors already, added in.
    """
    if _own_rank(spec) is _ABSENT:
        return spec
    assert isinstance(spec, Mapping)
    return {**spec, "objective": {key: value for key, value in spec["objective"].items() if key != "lora_rank"}}


def check_resumable(spec: object, folder: object) -> None:
    """Raise UserError for a run whose training state is not one of today's.

    Args:
        spec: of the run, of any age.
        folder: of its checkpoint.
    """
    if isinstance(rank := _own_rank(spec), int):
        raise UserError(
            f"{folder} is of an older gen, which trained adapters by objective.lora_rank: its weights load, its "
            f"training does not go on; start from them by --init {folder} --lora.rank {rank}"
        )


_ABSENT = object()


def _own_rank(spec: object) -> object:
    """Return the rank of the adapters that a distiller had of its own; None for no adapters."""
    objective = spec.get("objective") if isinstance(spec, Mapping) else None
    if not isinstance(objective, Mapping) or objective.get("name") not in CERTAINTY:
        return _ABSENT
    return objective.get("lora_rank", _ABSENT)
