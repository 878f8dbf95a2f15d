"""The denoiser: a network, the path it was trained on, and what its output means.

Solvers, guides, caches and distillers know only the call `f(x, t, cond, s=, tap=) -> Prediction`; the exact worlds of
gen/diffusion/worlds.py answer the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.net import members, unwrap
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Chain, FeatureRecorder, Tap, evaluate_network

__all__ = ["Cond", "CountingDenoiser", "Denoiser", "DenoiserLike", "LearnedVariance", "predict_branches"]

Cond = Mapping[str, Tensor]


class DenoiserLike(Protocol):
    """Anything that predicts data and noise at x_t: a trained network, an exact world, another denoiser under a guide.

    Must hold: the prediction for row i depends on row i of the arguments alone, and nothing is remembered between
    calls, but for a guide within its loop; alpha(t) x0 + sigma(t) eps = x unless a guide made the pair (CFG++).
    """

    @property
    def path(self) -> NoisePath:
        """The path that x_t lies on."""
        ...

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        """Predict E[x0 | x_t] and E[eps | x_t].

        Args:
            x: state [B, ...]; any floating dtype.
            t: its time in (0, t1], 0-d float64 on the CPU (sampling) or [B] (training, or a time for each sample).
            cond: tensors [B, ...] on x's device; None or {} for no condition.
            s: the time that a flow map jumps to, as t; x0 and eps are then those of the chord from t to s.
            tap: passed to the network, see gen.diffusion.tap; a denoiser without one ignores it.

        Returns:
            x0 and eps, of x's shape and dtype.
        """
        ...

    def null(self, cond: Cond) -> Cond:
        """Return the condition that stands for "no condition".

        Args:
            cond: tensors [B, ...]; the result has its keys, shapes and devices.
        """
        ...


class LearnedVariance(Prediction):
    """A prediction of a network that also learned the variance of a step (Nichol & Dhariwal 2021, eq. 15).

    A kind of its own and no third field: a pair stays what everything else unpacks. Solvers that read it say so
    (gen.diffusion.contracts.Solver.reads_variance).

    Attributes:
        interpolation: shaped as x0; -1 is the variance of the posterior q(x_s | x_t, x0), 1 that of the noise from s to
            t, and between them their logarithms are interpolated.
    """

    interpolation: Tensor

    def __new__(cls, x0: Tensor, eps: Tensor, interpolation: Tensor) -> LearnedVariance:
        pair = super().__new__(cls, x0, eps)
        pair.interpolation = interpolation
        return pair

    def replace(self, x0: Tensor, eps: Tensor) -> LearnedVariance:
        return LearnedVariance(x0, eps, self.interpolation)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network as a denoiser.

    On a path of masks (gen/text/mask_path.py) it only holds net and path, and parameterisation is None.

    Attributes:
        net: a gen.diffusion.net.Net.
        path: that it was trained on.
        parameterisation: what its output means, and how its input is scaled.
        with_variance: predictions are a LearnedVariance, from the second half of the channels at the network's site
            "final". So networks and their outputs stay what they are for all who read no variance.
        dtype: in which x and the floating conditions enter the network; None for x's own. Outputs are in x's.
    """

    net: nn.Module
    path: NoisePath
    parameterisation: Parameterisation
    with_variance: bool = field(default=False, kw_only=True)
    dtype: torch.dtype | None = field(default=None, kw_only=True)

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if not self.with_variance:
            return self.parameterisation.solve(self.path, x, self.output(x, t, cond, s=s, tap=tap), t)
        final = FeatureRecorder(("final",))
        taps = Chain((final,)) if tap is None else Chain((final, tap))
        pred = self.parameterisation.solve(self.path, x, self.output(x, t, cond, s=s, tap=taps), t)
        whole = final.features.get("final")
        if whole is None or whole.shape[1] != 2 * x.shape[1]:
            raise UserError("the solver reads learned variances, and this network has none: its spec needs learn_sigma")
        return LearnedVariance(*pred, whole[:, x.shape[1] :].to(x.dtype))

    def output(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Return the network's raw output at x_t, shaped as x, which a training loss compares with its target."""
        scaled = expand(self.parameterisation.scale(self.path, t), x) * x
        target, time, given = None if s is None else self.t_to_network(s, x), self.t_to_network(t, x), cond or {}
        if self.dtype is not None:
            scaled = scaled.to(self.dtype)
            given = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in given.items()}

        def network(tap: Tap | None, rows: Tensor | None) -> Tensor:
            if rows is None:
                return self.net(scaled, time, given, s=target, tap=tap)
            some = {k: v[rows] if len(v) == len(x) else v for k, v in given.items()}  # a table's row may stand for all
            return self.net(scaled[rows], time[rows], some, s=None if target is None else target[rows], tap=tap)

        whole = tap is None or members(self.net).fixed_batch
        return (network(tap, None) if whole else evaluate_network(tap, network)).to(x.dtype)

    def null(self, cond: Cond) -> Cond:
        return unwrap(self.net).null(cond)

    def t_to_network(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the network's time for t, 0-d or [B]: [B], on x's device, float64 if x is and float32 otherwise.

        [B, S, 2] on a path of S stages.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        time = self.path.t_to_network(t).to(device=x.device, dtype=dtype)
        return time.expand(len(x), *time.shape[t.ndim :])


@dataclass(eq=False)
class CountingDenoiser:
    """A denoiser that counts its calls.

    Attributes:
        inner: the denoiser that is called.
        calls: so far.
        rows: of all batches so far: evaluations of single samples.
    """

    inner: DenoiserLike
    calls: int = 0
    rows: int = 0

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        self.calls += 1
        self.rows += len(x)
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


def predict_branches(
    f: DenoiserLike, first: Callable[[], Prediction], second: Callable[[], Prediction]
) -> tuple[Prediction, Prediction]:
    """Return two predictions of one network: one after the other, or as its engine shares them out between processes.

    Args:
        f: the denoiser that both call, perhaps counted.
        first, second: each evaluates the network once.
    """
    inner: Any = f
    while not isinstance(inner, Denoiser) and hasattr(inner, "inner"):
        inner = inner.inner
    if not isinstance(inner, Denoiser) or inner.with_variance:  # variances are a second output
        return first(), second()
    run = members(inner.net).run_branches
    return (first(), second()) if run is None else run(first, second)
