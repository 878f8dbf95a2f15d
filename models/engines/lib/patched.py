"""Networks of which each process computes a patch of every sample, in a sampling loop that remembers what was sent."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from gen.diffusion.tap import Chain, Compute, Context, ContextualTap, Tap
from gen.kernels.sequence_parallel.collectives import Traffic
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.exchanges import Evaluation
from gen.models.layers.wrapper import Wrapper

__all__ = ["PatchSettings", "PatchesNet", "Stale", "about_patches", "evaluation_of"]

Stale = dict[tuple[str, int], dict[Hashable, Callable[[], Any]]]  # what was sent, by branch and stage, and by operation


class PatchSettings(Protocol):
    """The fields of gen.models.engines.patches.Patches."""

    @property
    def warmup(self) -> int:
        """The last synchronous step."""
        ...

    @property
    def portion(self) -> float | None:
        """The share of a neighbour's tokens that is attended to, or None."""
        ...

    @property
    def synchronous(self) -> bool:
        """Return whether all steps are."""
        ...

    @property
    def parts(self) -> int | None:
        """The number of parts on one process, or None."""
        ...


class PatchesNet(Wrapper):
    """A network of which each process computes a part of every sample, called like it; all have the whole output.

    Attributes:
        divided: sites whose inside is computed in parts: sites of a tap in there see those of this process.
        exchange: between parts.
        about: method, portion and number of parts, in words.
        evaluation: the one at hand; outside a loop a synchronous one.
    """

    fixed_batch = splits_samples = True
    divided: ClassVar[tuple[str, ...]]

    def __init__(self, net: nn.Module, engine: PatchSettings, exchange: PatchExchange):
        super().__init__(net.spec)
        self.inner, self.engine, self.exchange = net, engine, exchange
        self.about = about_patches(engine, exchange)
        self.evaluation = Evaluation({}, synchronous=True, keep=False)

    @property
    def traffic(self) -> Traffic:
        """The bytes that this process has sent."""
        return self.exchange.traffic

    def start_loop(self, steps: int, session: ContextualTap | None) -> ContextualTap:
        """Return the tap of one sampling loop, which holds what other processes sent; see `PatchLoop`.

        Args:
            steps: of the loop.
            session: a cache's; None for none.
        """
        return PatchLoop(self, session)

    def evaluate(self, evaluation: Evaluation, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed within an evaluation of a loop."""
        before, self.evaluation = self.evaluation, evaluation
        try:
            return compute()
        finally:
            self.evaluation = before


@dataclass(eq=False)
class PatchLoop:
    """A contextual tap for one batch's loop: what was sent at the step before, apart for each branch and stage.

    Attributes:
        net: that is evaluated.
        session: a cache's, whose tap lies around this one's; None for none.
        stale: what was sent, by branch and stage, and by operation.
    """

    net: PatchesNet
    session: ContextualTap | None
    stale: Stale = field(default_factory=dict, init=False)

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation."""
        net, evaluation = self.net, evaluation_of(self.net.engine, context, self.stale)

        def own(site: str, compute: Compute, h: Tensor) -> Tensor:
            return net.evaluate(evaluation, lambda: compute(h)) if site in net.divided else compute(h)

        return own if self.session is None else Chain((self.session.bind(context), own))


def evaluation_of(engine: PatchSettings, context: Context, stale: Stale) -> Evaluation:
    """Return an evaluation of a loop.

    Args:
        engine: settings.
        context: of the evaluation.
        stale: of the loop, to which what this evaluation sends is added.
    """
    return Evaluation(
        stale.setdefault((context.branch, context.stage), {}),
        synchronous=engine.synchronous or context.step <= engine.warmup,
        keep=not engine.synchronous and engine.warmup <= context.step < context.steps - 1,
    )


def about_patches(engine: PatchSettings, exchange: PatchExchange) -> str:
    """Return method, portion and number of parts, in words.

    Args:
        engine: settings.
        exchange: between parts.
    """
    stale = "stale" if engine.portion is None else f"stale, portion {engine.portion:g}"
    where = "parts" if engine.parts else "processes"
    return f"patches ({'synchronous' if engine.synchronous else stale}, {exchange.parts} {where})"
