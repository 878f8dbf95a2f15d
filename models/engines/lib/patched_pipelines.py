"""Networks of diffusers' pipelines, of which each process computes a part; they are not copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Chain, Compute, Context, SiteCall, Tap, begin_site, call_site, run_site_call
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.network_parts import NetworkParts, UNetRows
from gen.models.engines.lib.network_tokens import TransformerTokens
from gen.models.engines.lib.operations import PartOperations
from gen.models.engines.lib.patched import PatchesNet, PatchSettings, Stale, about_patches, evaluation_of
from gen.models.engines.lib.patched_rows import check_rows
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.network import PipelineNet

__all__ = ["LivePatches", "PipelinePatches", "parts_of"]


def parts_of(network: Any, exchange: PatchExchange, portion: float | None) -> NetworkParts:
    """Return the parts of a network; UserError for one that cannot be shared out.

    Args:
        network: of diffusers.
        exchange, portion: as of `NetworkParts`.
    """
    kind = UNetRows if hasattr(plain_module(network), "down_blocks") else TransformerTokens
    return kind(network, exchange, portion)


class PipelinePatches(PatchesNet):
    """A pipeline's own network, with hooks while it is evaluated, within which taps see this process's part."""

    divided = ("net",)

    def __init__(self, net: PipelineNet, engine: PatchSettings, exchange: PatchExchange):
        parts = parts_of(net.inner, exchange, engine.portion)
        if net.low is not None or net.token_times is not None:
            reason = "its pipeline has two" if net.low is not None else "each of its tokens has a time"
            raise UserError(f"the engine 'patches' cannot share out this {type(parts.network).__name__}: {reason}")
        if isinstance(parts, UNetRows):
            check_rows(net.state_shape[1], parts.halvings, exchange.parts)
        super().__init__(net, engine, exchange)
        self.parts = parts

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if tap is not None:
            return self.inner(x, t, cond, s=s, tap=PartSites(self, tap))
        with self.parts.in_parts(self.operations()):
            return self.inner(x, t, cond, s=s)

    def operations(self) -> PartOperations:
        """Return what computes parts in the evaluation at hand."""
        return self.parts.kind(self.exchange, self.evaluation, self.engine.portion)


class PartSites:
    """The tap of one evaluation of a pipeline's network in parts.

    Args:
        net: that is evaluated.
        tap: called at every site.
    """

    def __init__(self, net: PipelinePatches, tap: Tap):
        self.net, self.tap, self.operations = net, tap, net.operations()

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if site in self.net.divided:
            return call_site(self.tap, site, partial(self._divided, compute), h)
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        """Return the call of a site in two halves, see gen.diffusion.tap.SiteCall."""
        return begin_site(Chain((self.tap, self.operations)), site, h)

    def _divided(self, compute: Compute, h: Tensor) -> Tensor:
        self.operations = self.net.operations()
        with self.net.parts.in_parts(self.operations):
            return compute(h)


class LivePatches:
    """The parts of a live pipeline's networks, in its loops.

    Args:
        networks: of the pipeline.
        engine: settings.
        exchange: between parts.

    Attributes:
        parts: of each network.
        about: method, portion and number of parts, in words.
        stale: what was sent in the loop at hand, by branch and stage, and by operation.
    """

    def __init__(self, networks: Sequence[Any], engine: PatchSettings, exchange: PatchExchange):
        self.engine, self.exchange, self.about = engine, exchange, about_patches(engine, exchange)
        self.parts = [parts_of(network, exchange, engine.portion) for network in networks]
        self.begin()

    def begin(self) -> None:
        """Begin a loop."""
        self.stale: Stale = {}

    @contextmanager
    def evaluation(self, number: int, context: Context) -> Iterator[PartOperations]:
        """Compute a part of one network's evaluation within; yields the operations, a tap that sees all its sites.

        Args:
            number: of the network.
            context: of the evaluation.
        """
        parts = self.parts[number]
        operations = parts.kind(self.exchange, evaluation_of(self.engine, context, self.stale), self.engine.portion)
        with parts.in_parts(operations):
            yield operations
