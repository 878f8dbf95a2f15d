"""One sample's patches in the pipeline of a network's stages, each process with a part of the blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Compute, Tap, call_site
from gen.kernels.sequence_parallel.collectives import Group, Traffic
from gen.kernels.sequence_parallel.patches import patch_attention
from gen.kernels.sequence_parallel.stages import OneStage, ProcessStages, Stages
from gen.models.dit import DiTNet
from gen.models.engines.lib.staged import StagedNet
from gen.models.engines.lib.staged_pipelines import PipelineStages
from gen.models.interop.pipelines.network import PipelineNet
from gen.models.layers.attention import Attention
from gen.models.lightning_dit import LightningDiTNet
from gen.models.pixart import PixArtNet

__all__ = ["PipeFusion", "PipeFusionNet"]

FAMILIES = {DiTNet: "dit", LightningDiTNet: "lightning_dit", PixArtNet: "pixart"}


@dataclass(frozen=True)
class PipeFusion:
    """A DiT, LightningDiT, PixArt or pipeline's transformer whose blocks are stages, a stage to each process.

    Patches of the tokens pass through the stages one after the other (PipeFusion, Fang et al. 2024, arXiv 2405.14430).
    A patch attends to the fresh keys and values of the patches before it, and to the last evaluation's of those behind
    it, which each stage keeps for its own blocks; so processes send tokens from stage to stage, whatever the depth, and
    have 1 / N of the blocks each; a pipeline's network, which stays as it is, is whole on all. A text that attends
    jointly with the image passes with the first patch. Samples are approximate after the warm-up. Every process has the
    whole output, so solvers, and guides that need all of a sample, are as ever: the pipeline runs empty after each
    evaluation, in which M patches take the time of M + N - 1, where the published one lets the next step's patches
    follow at once; the numbers are the same. Sites of taps within the trunk are not called. Calls outside a loop of
    Pipeline.sample are synchronous, and so is a branch's first evaluation.

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

    copies = False  # a pipeline's network, which is used as it is

    @property
    def collective(self) -> bool:
        """Whether processes compute each sample together, so that samples are not shared out between them."""
        return self.parts is None

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu", group: Group = None) -> StagedNet:
        """Return a copy with this process's blocks, or a pipeline's own network; UserError where it does not divide."""
        if type(net) not in FAMILIES and not isinstance(net, PipelineNet):
            allowed = ", ".join(FAMILIES.values())
            raise UserError(f"the engine 'pipefusion' divides the blocks of {allowed} and of pipelines' transformers, "
                            f"not of {type(net).__name__}")  # fmt: skip
        if self.parts is None and not dist.is_initialized():
            raise UserError("the engine 'pipefusion' needs processes: start them with torchrun and init_process_group, "
                            "or give parts = 2 to try it in one")  # fmt: skip
        stages: Stages = ProcessStages(group) if self.parts is None else OneStage(self.parts, Traffic())
        if isinstance(net, PipelineNet):
            return PipelineStages(net, self, stages)
        return PipeFusionNet(net, self, stages).to(device)


class PipeFusionNet(StagedNet):
    """A copy of a network with the blocks of one stage, or of all."""

    site = "trunk"

    def __init__(self, net: Any, engine: PipeFusion, stages: Stages):
        super().__init__(net, engine, stages, len(net.blocks))
        blocks = nn.ModuleList(copy.deepcopy(net.blocks[i]) for i in self.own)
        self.inner = copy.deepcopy(net, {id(net.blocks): blocks})  # never a copy of the others
        for layer, module in enumerate(module for module in blocks.modules() if isinstance(module, Attention)):
            module.attend = partial(self._attend, layer)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        def staged(site: str, compute: Compute, h: Tensor) -> Tensor:
            whole: dict[str, Compute] = {
                "time": compute,
                "trunk": partial(self._trunk, compute),
                "final": lambda h: self.stages.share(compute(h)),
            }
            return call_site(tap, site, whole[site], h) if site in whole else compute(h)

        return self.inner(x, t, cond, s=s, tap=staged)

    def _trunk(self, compute: Compute, h: Tensor) -> Tensor:
        """Return the tokens after all blocks on the last stage's process, [B, T, width]; elsewhere any."""
        now = self.evaluation
        self.check_tokens(h.shape[1], torch.is_grad_enabled())

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
