"""Devices that gen computes on: the CPU and CUDA; on others what torch can do there, but for those without float64."""

from __future__ import annotations

import torch

from gen.config.errors import UserError

__all__ = ["check_device", "incapable_reason", "is_accelerated"]

WITHOUT_FLOAT64 = ("mps",)


def incapable_reason(device: str | torch.device) -> str | None:
    """Return why gen does not compute on devices of this kind, or None.

    Args:
        device: such as "mps".
    """
    kind = torch.device(device).type
    if kind in WITHOUT_FLOAT64:
        return f"{kind.upper()} has no float64, in which times, losses over time and statistics are computed"
    return None


def is_accelerated() -> bool:
    """Return whether this machine has an accelerator that gen computes on."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and incapable_reason(found) is None


def check_device(device: str | torch.device) -> None:
    """Raise UserError for a device that cannot be used here.

    Args:
        device: such as "cuda:1".
    """
    try:
        why = incapable_reason(device)
        if why is None:
            torch.ones(1, device=device).sum().item()
            return
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
    raise UserError(f"the device {str(device)!r} cannot be used here ({why}); allowed: cpu, cuda; see: gen doctor")
