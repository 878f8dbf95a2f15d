"""Other people's packages, where they are installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gen.eval.bench import Absent, Where

__all__ = ["of_diffusers", "on_cuda"]


def of_diffusers(name: str) -> Any:
    """A class of diffusers; Absent where it cannot be imported."""
    try:
        return getattr(import_module("diffusers"), name)
    except (ImportError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise Absent(f"no {name} of diffusers here ({why}); pip install 'gen[diffusers]'") from None


def on_cuda(package: str, place: str, name: str, where: Where) -> Any:
    """The function `name` of the module `place`, of a package whose kernels are for CUDA; Absent without either."""
    if not where.cuda:
        raise Absent(f"{package}'s kernels are for CUDA, and this is {where.device.type}")
    try:
        return getattr(import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise Absent(f"{package} is not installed ({' '.join(str(error).split())})") from None
