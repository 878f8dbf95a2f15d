"""One sample's patches on several processes, which use each other's keys and values of the step before."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Chain, Compute, Context, ContextualTap, Tap
from gen.kernels.sequence_parallel.collectives import Group, Traffic
from gen.kernels.sequence_parallel.patches import (
    Arriving,
    OneProcess,
    PatchExchange,
    Processes,
    around,
    patch_attention,
    patch_window,
)
from gen.models.dit import DiTNet
from gen.models.engines.lib.trunk import trunk_in_parts
from gen.models.layers.attention import Attention
from gen.models.layers.wrapper import Wrapper
from gen.models.lightning_dit import LightningDiTNet

__all__ = ["Patches", "PatchesNet"]

FAMILIES = {DiTNet: "dit", LightningDiTNet: "lightning_dit"}


@dataclass(frozen=True)
class Patches:
    """A DiT or LightningDiT of whose patches each process computes an equal part: DistriFusion and PCPP.

    After its warm-up a process attends to its own fresh keys and values and to the others' of the step before, which
    travel while it computes (DistriFusion, Li et al. 2024, arXiv 2402.19481); with a portion only to the nearest share
    of its two neighbours' (PCPP, Zhang et al. 2024, arXiv 2412.02962). All processes have the whole network and the
    whole output, so solvers, and guides that need all of a sample, are as ever. Samples are approximate. Calls outside
    a loop of Pipeline.sample are synchronous, and so is a branch's first evaluation.

    Attributes:
        warmup: W for synchronous steps 0 ... W, which are W + 1, as published and in their code; 4 is theirs.
        portion: of a neighbour's tokens, in [0, 1], that is sent and attended to; PCPP's code has 0.3. None for all
            tokens of all processes, which is DistriFusion.
        synchronous: all steps are, and samples exact: keys and values are waited for.
        parts: so many parts on this process alone, which saves nothing, to measure quality; None for one on each
            process of torch.distributed's default group.
    """

    warmup: int = 4
    portion: float | None = None
    synchronous: bool = False
    parts: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, warmup="[0, inf)", portion="[0, 1]", parts="[1, inf)")

    @property
    def collective(self) -> bool:
        """Whether processes compute each sample together, so that samples are not shared out between them."""
        return self.parts is None

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu", group: Group = None) -> PatchesNet:
        """Return a copy of the network; UserError where it does not divide, and where processes are missing."""
        if type(net) not in FAMILIES:
            allowed = ", ".join(FAMILIES.values())
            raise UserError(f"the engine 'patches' shares out tokens of {allowed}, not of {type(net).__name__}")
        if self.parts is None and not dist.is_initialized():
            raise UserError("the engine 'patches' needs processes: start them with torchrun and init_process_group, "
                            "or give parts = 2 to try it in one")  # fmt: skip
        exchange: PatchExchange = Processes(group) if self.parts is None else OneProcess(self.parts, Traffic())
        spec: Any = net.spec
        tokens = math.prod(side // spec.patch for side in sides(spec))
        if tokens % exchange.parts:
            raise UserError(f"the engine 'patches': {tokens} tokens do not divide into {exchange.parts} parts")
        return PatchesNet(net, self, exchange).to(device)


@dataclass
class Evaluation:
    """One evaluation of the network in a loop.

    Attributes:
        stale: what was sent by the last evaluation of this branch and stage, by layer, until this one sends its own.
        synchronous: whether this one waits for fresh keys and values.
        keep: whether a later evaluation may use what it sends.
    """

    stale: dict[int, Arriving]
    synchronous: bool
    keep: bool


class PatchesNet(Wrapper):
    """A copy of a network, called like it. Inside "trunk" the sites of a tap see this process's tokens.

    Attributes:
        exchange: between parts.
        about: method, portion and number of parts, in words.
    """

    fixed_batch = splits_samples = True

    def __init__(self, net: nn.Module, engine: Patches, exchange: PatchExchange):
        super().__init__(net.spec)
        self.inner, self.engine, self.exchange = copy.deepcopy(net), engine, exchange
        self.about = f"patches ({_method(engine)}, {exchange.parts} {'parts' if engine.parts else 'processes'})"
        self.evaluation = Evaluation({}, synchronous=True, keep=False)
        layers = (module for module in self.inner.modules() if isinstance(module, Attention))
        for layer, module in enumerate(layers):
            module.attend = partial(self._attend, layer)

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
        return PatchLoop(self, steps, session)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        return self.inner(x, t, cond, s=s, tap=trunk_in_parts(tap, self.exchange.local, self.exchange.gather))

    def evaluate(self, evaluation: Evaluation, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed within an evaluation of a loop."""
        before, self.evaluation = self.evaluation, evaluation
        try:
            return compute()
        finally:
            self.evaluation = before

    def _attend(self, layer: int, qkv: Tensor, **options: Any) -> Tensor:
        """Return the attention of the own parts' queries, [B, n, H, d]."""
        now, exchange, portion = self.evaluation, self.exchange, self.engine.portion
        if qkv.requires_grad and not now.synchronous:
            raise UserError("the engine 'patches' passes no gradients on: sample under torch.no_grad()")
        pieces = qkv.chunk(len(exchange.own), 1)
        tokens = exchange.parts * pieces[0].shape[1]
        arriving = None if now.synchronous else now.stale.pop(layer, None)
        if arriving is None:  # synchronous, or the first evaluation of its branch
            portion = None
            whole = exchange.gather(qkv[:, :, 1:])
            surroundings = [around(whole, part, exchange.parts, None) for part in exchange.own]
            if now.keep:
                kept = [around(whole, part, exchange.parts, self.engine.portion) for part in exchange.own]
                now.stale[layer] = lambda: kept
        else:
            surroundings = arriving()
            if now.keep:
                now.stale[layer] = exchange.start(qkv[:, :, 1:], portion)
        out = []
        for part, piece, (before, after) in zip(exchange.own, pieces, surroundings, strict=True):
            window, n = patch_window(part, exchange.parts, tokens, portion), piece.shape[1]
            kv = torch.cat([before, piece[:, :, 1:], after], 1)
            out.append(patch_attention(piece, kv, range(part * n, (part + 1) * n), window, **options))
        return torch.cat(out, 1)


@dataclass(eq=False)
class PatchLoop:
    """A contextual tap for one batch's loop: what was sent at the step before, apart for each branch and stage.

    Attributes:
        net: that is evaluated.
        steps: of the loop.
        session: a cache's, whose tap lies around this one's; None for none.
        stale: what was sent, by branch and stage, and by layer.
    """

    net: PatchesNet
    steps: int
    session: ContextualTap | None
    stale: dict[tuple[str, int], dict[int, Arriving]] = field(default_factory=dict, init=False)

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation."""
        engine = self.net.engine
        evaluation = Evaluation(
            self.stale.setdefault((context.branch, context.stage), {}),
            synchronous=engine.synchronous or context.step <= engine.warmup,
            keep=not engine.synchronous and engine.warmup <= context.step < self.steps - 1,
        )

        def own(site: str, compute: Compute, h: Tensor) -> Tensor:
            return self.net.evaluate(evaluation, lambda: compute(h)) if site == "trunk" else compute(h)

        return own if self.session is None else Chain((self.session.bind(context), own))


def _method(engine: Patches) -> str:
    if engine.synchronous:
        return "synchronous"
    return "stale" if engine.portion is None else f"stale, portion {engine.portion:g}"
