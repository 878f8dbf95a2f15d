"""One sample's patches in the pipeline of a network's stages, each process with a part of the blocks."""

from __future__ import annotations

import copy
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
from gen.diffusion.tap import Compute, Context, ContextualTap, Tap, call_site
from gen.kernels.sequence_parallel.collectives import Group, Traffic
from gen.kernels.sequence_parallel.patches import patch_attention
from gen.kernels.sequence_parallel.stages import OneStage, ProcessStages, Stages, stage_blocks
from gen.models.dit import DiTNet
from gen.models.layers.attention import Attention
from gen.models.layers.wrapper import Wrapper
from gen.models.lightning_dit import LightningDiTNet
from gen.models.pixart import PixArtNet

__all__ = ["PipeFusion", "PipeFusionNet"]

FAMILIES = {DiTNet: "dit", LightningDiTNet: "lightning_dit", PixArtNet: "pixart"}


@dataclass(frozen=True)
class PipeFusion:
    """A DiT, LightningDiT or PixArt whose blocks are divided into stages, a stage to each process.

    Patches of the tokens pass through the stages one after the other (PipeFusion, Fang et al. 2024, arXiv 2405.14430).
    A patch attends to the fresh keys and values of the patches before it, and to the last evaluation's of those behind
    it, which each stage keeps for its own blocks; so processes send tokens from stage to stage, whatever the depth, and
    have 1 / N of the blocks each. Samples are approximate after the warm-up. Every process has the whole output, so
    solvers, and guides that need all of a sample, are as ever: the pipeline runs empty after each evaluation, in which
    M patches take the time of M + N - 1, where the published one lets the next step's patches follow at once; the
    numbers are the same. Sites of taps within the trunk are not called. Calls outside a loop of Pipeline.sample are
    synchronous, and so is a branch's first evaluation.

    Attributes:
        warmup: synchronous steps, in which the whole sample passes at once; 1 as in their code.
        patches: M, how many the tokens are divided into; None for as many as stages. More of them fill the pipeline
            better, and are fresher.
        synchronous: all steps are, and samples exact; that saves memory, and no time.
        parts: N stages on this process alone, which saves nothing, to measure quality; None for one on each process of
            torch.distributed's default group.
    """

    warmup: int = 1
    patches: int | None = None
    synchronous: bool = False
    parts: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, warmup="[0, inf)", patches="[1, inf)", parts="[1, inf)")

    @property
    def collective(self) -> bool:
        """Whether processes compute each sample together, so that samples are not shared out between them."""
        return self.parts is None

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu", group: Group = None) -> PipeFusionNet:
        """Return a copy with this process's blocks; UserError for another network, and where processes are missing."""
        if type(net) not in FAMILIES:
            allowed = ", ".join(FAMILIES.values())
            raise UserError(f"the engine 'pipefusion' divides the blocks of {allowed}, not of {type(net).__name__}")
        if self.parts is None and not dist.is_initialized():
            raise UserError("the engine 'pipefusion' needs processes: start them with torchrun and init_process_group, "
                            "or give parts = 2 to try it in one")  # fmt: skip
        stages: Stages = ProcessStages(group) if self.parts is None else OneStage(self.parts, Traffic())
        depth = len(net.blocks)  # type: ignore[arg-type]
        if stages.stages > depth:
            raise UserError(f"the engine 'pipefusion': {depth} blocks do not make {stages.stages} stages")
        return PipeFusionNet(net, self, stages).to(device)


@dataclass
class Evaluation:
    """One evaluation of the network in a loop.

    Attributes:
        kept: keys and values of all tokens, [B, T, 2, H, d], by layer; those of patches that have passed are fresh.
        synchronous: whether the whole sample passes at once.
        keep: whether a later evaluation may use them.
        patch: the one that passes now.
    """

    kept: dict[int, Tensor]
    synchronous: bool
    keep: bool
    patch: int = 0


class PipeFusionNet(Wrapper):
    """A copy of a network with the blocks of one stage, or of all, called like it.

    Attributes:
        stages: what patches pass through.
        about: numbers of patches and stages, in words.
    """

    fixed_batch = splits_samples = True

    def __init__(self, net: Any, engine: PipeFusion, stages: Stages):
        super().__init__(net.spec)
        self.engine, self.stages = engine, stages
        self.patches = stages.stages if engine.patches is None else engine.patches
        own = range(len(net.blocks)) if engine.parts else stage_blocks(stages.stage, stages.stages, len(net.blocks))
        blocks = nn.ModuleList(copy.deepcopy(net.blocks[i]) for i in own)
        self.inner = copy.deepcopy(net, {id(net.blocks): blocks})  # never a copy of the others
        where = f"{stages.stages} {'stages in one process' if engine.parts else 'processes'}"
        self.about = f"pipefusion ({self.patches} patches, {where})"
        self.evaluation = Evaluation({}, synchronous=True, keep=False)
        for layer, module in enumerate(module for module in blocks.modules() if isinstance(module, Attention)):
            module.attend = partial(self._attend, layer)

    @property
    def traffic(self) -> Traffic:
        """The bytes that this process has sent."""
        return self.stages.traffic

    def start_loop(self, steps: int, session: ContextualTap | None) -> ContextualTap:
        """Return the tap of one sampling loop, which holds keys and values; see `PipeFusionLoop`.

        Args:
            steps: of the loop.
            session: a cache's, which is refused with a UserError: each process has other blocks.
        """
        if session is not None:
            raise UserError("the engine 'pipefusion' takes no cache, since each process has other blocks: "
                            "leave the cache out, or take the engine 'patches'")  # fmt: skip
        return PipeFusionLoop(self, steps)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        def staged(site: str, compute: Compute, h: Tensor) -> Tensor:
            whole: dict[str, Compute] = {
                "time": compute,
                "trunk": partial(self._trunk, compute),
                "final": lambda h: self.stages.share(compute(h)),
            }
            return call_site(tap, site, whole[site], h) if site in whole else compute(h)

        return self.inner(x, t, cond, s=s, tap=staged)

    def evaluate(self, evaluation: Evaluation, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed within an evaluation of a loop."""
        before, self.evaluation = self.evaluation, evaluation
        try:
            return compute()
        finally:
            self.evaluation = before

    def _trunk(self, compute: Compute, h: Tensor) -> Tensor:
        """Return the tokens after all blocks on the last stage's process, [B, T, width]; elsewhere any."""
        now = self.evaluation
        if torch.is_grad_enabled() and not (now.synchronous and self.engine.parts):
            raise UserError("the engine 'pipefusion' passes no gradients on: sample under torch.no_grad()")
        if h.shape[1] % self.patches:
            raise UserError(f"the engine 'pipefusion': {h.shape[1]} tokens do not divide into {self.patches} patches")

        def part(patch: int, piece: Tensor) -> Tensor:
            now.patch = patch
            return compute(piece)

        return torch.cat(self.stages.run([h] if now.synchronous else h.chunk(self.patches, 1), part), 1)

    def _attend(self, layer: int, qkv: Tensor, **options: Any) -> Tensor:
        """Return the attention of the patch's queries to all keys, [B, n, H, d]."""
        now, n = self.evaluation, qkv.shape[1]
        kv, first = qkv[:, :, 1:], now.patch * n
        if now.synchronous:
            whole = kv
            if now.keep:
                now.kept[layer] = kv.clone()
        else:
            whole = now.kept[layer]
            whole[:, first : first + n] = kv
        return patch_attention(qkv, whole, range(first, first + n), range(whole.shape[1]), **options)


@dataclass(eq=False)
class PipeFusionLoop:
    """A contextual tap for one batch's loop: keys and values of the own blocks, apart for each branch and stage.

    Attributes:
        net: that is evaluated.
        steps: of the loop.
        kept: by branch and stage of the solver's step, and by layer.
    """

    net: PipeFusionNet
    steps: int
    kept: dict[tuple[str, int], dict[int, Tensor]] = field(default_factory=dict, init=False)

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation."""
        engine, kept = self.net.engine, self.kept.setdefault((context.branch, context.stage), {})
        evaluation = Evaluation(
            kept,
            synchronous=engine.synchronous or context.step < engine.warmup or not kept,
            keep=not engine.synchronous and context.step < self.steps - 1,
        )

        def own(site: str, compute: Compute, h: Tensor) -> Tensor:
            return self.net.evaluate(evaluation, lambda: compute(h)) if site == "trunk" else compute(h)

        return own
