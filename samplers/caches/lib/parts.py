"""The parts of a feature cache: policy (when to compute), predictor (what to use otherwise), coordinate, calibrator.

Any policy goes with any predictor, along any coordinate, at any sites (gen.samplers.caches.custom). All are frozen and
keep no state of their own: a session (gen.samplers.caches.lib.session) holds it, apart for each branch and stage. The
sites are patterns of names that the network gives its taps, such as "blocks.*.attn.raw" or "trunk".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from gen.diffusion.tap import Context

__all__ = ["CachePolicy", "Calibrator", "Coordinate", "FeaturePredictor", "Rows"]

Rows = Sequence[bool]  # for each row of the batch, or one entry for all of them


class CachePolicy(Protocol):
    """A rule for which evaluations are computed, row by row.

    Must hold: the first evaluation of a branch and stage is computed; rows decide for themselves, so that none depends
    on its batch; a NaN is computed. If any row is to be computed all are, and the others keep their prediction.
    """

    @property
    def probe(self) -> str:
        """The site whose value decides; "" (default) for a decision before the network runs."""
        return ""

    @property
    def early(self) -> bool:
        """True if the probe's input is enough to decide, so that the probe itself is cached too."""
        return False

    @property
    def check(self) -> str:
        """A pattern of sites of which the last one verifies the prediction of the rest; "" (default) for none."""
        return ""

    def init(self) -> Any:
        """Return the state before the first evaluation; None by default."""
        return None

    @abstractmethod
    def decide(self, context: Context, state: Any, h: Tensor | None, out: Tensor | None) -> tuple[Rows, Any]:
        """Decide which rows of an evaluation are to be computed.

        Args:
            context: step, stage, time and branch of the evaluation.
            state: what the last `decide` or `verify` of this branch and stage returned, or `init()`.
            h, out: the probe's input and output, [B, ...]; None without a probe, out None too if it is early.

        Returns:
            True for the rows to compute, and the next state.
        """
        ...

    def verify(self, context: Context, state: Any, draft: Tensor, real: Tensor) -> Any:
        """Return the next state after the check of a prediction; only called with a `check`.

        Args:
            context, state: as of `decide`.
            draft, real: the last site's predicted and computed output, [B, ...].
        """
        return state


class FeaturePredictor(Protocol):
    """A rule for a feature at a coordinate from snapshots of it, linear in them.

    Must hold: a constant feature is predicted to the bit; polynomials of at most `degree` exactly.
    """

    @property
    def size(self) -> int:
        """The number of snapshots that it uses, at least 1."""
        ...

    @property
    def degree(self) -> int:
        """The degree up to which polynomials in the coordinate are predicted exactly."""
        ...

    def weights(self, nodes: Sequence[float], x: float) -> Sequence[float]:
        """Return the weights of the snapshots, one for each, summing to 1.

        Args:
            nodes: coordinates of the snapshots, newest first, distinct, 1 to `size` of them.
            x: the coordinate to predict at.
        """
        ...


class Coordinate(Protocol):
    """The coordinate along which a predictor extrapolates."""

    def value(self, context: Context) -> float:
        """Return the coordinate of an evaluation: finite, and monotonic over the steps of a loop.

        Args:
            context: step, stage, time and branch of the evaluation.
        """
        ...


class Calibrator(Protocol):
    """A measurement on every feature that a session computes, for a cache that must be calibrated first."""

    def observe(self, context: Context, site: str, feature: Tensor) -> None:
        """Take in a feature.

        Args:
            context: step, stage, time and branch of the evaluation.
            site: name of the cached site.
            feature: what would be remembered of it, [B, ...].
        """
        ...

    def result(self) -> Mapping[str, Any]:
        """Return the measurement as JSON values, for CacheReport.calibration."""
        ...
