"""Ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.solvers.ddim import DDIM

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(DDIM):
    """Euler down to a lower noise level and fresh noise up again: DDPM's sampler (Ho et al. 2020, algorithm 2).

    On EDM it is "Euler ancestral" of k-diffusion; on every path it is DDIM with eta = 1.

    Attributes:
        eta: a smaller one adds less noise.
    """

    eta: float = 1.0
