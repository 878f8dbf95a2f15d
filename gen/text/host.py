"""Looks of the host at the device: free where it computes for itself, and elsewhere a wait for all that was asked."""

from __future__ import annotations

from torch import Tensor

__all__ = ["host_reads_are_free", "known_to_be_none"]


def host_reads_are_free(tensor: Tensor) -> bool:
    """Return whether the host may look at a tensor's numbers; where it computes for itself, it waits for no device.

    Args:
        tensor: any.
    """
    return tensor.device.type == "cpu"


def known_to_be_none(where: Tensor) -> bool:
    """Return whether a Boolean tensor is False everywhere, as far as the host may look.

    Args:
        where: any shape.
    """
    return host_reads_are_free(where) and not bool(where.any())
