"""Other people's packages, where they are installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gen.eval.bench import BenchContext, Unavailable

__all__ = ["of_diffusers", "on_cuda"]


def of_diffusers(name: str) -> Any:
    """Return a class of diffusers.

    Args:
        name: of the class.

    Raises:
        Unavailable: where it cannot be imported.
    """
    try:
        return getattr(import_module("diffusers"), name)
    except (ImportError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise Unavailable(f"no {name} of diffusers here ({why}); pip install 'gen-diffusion[diffusers]'") from None


def on_cuda(package: str, module: str, name: str, context: BenchContext) -> Any:
    """Return a function of a package whose kernels are for CUDA.

    Args:
        package: its name on the index.
        module: dotted name.
        name: of the function.
        context: of the benchmark.

    Raises:
        Unavailable: without CUDA, or the package.
    """
    if not context.cuda:
        raise Unavailable(f"{package}'s kernels are for CUDA, and this is {context.device.type}")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"{package} is not installed ({' '.join(str(error).split())})") from None
