"""One sample's patches on several processes, which use what others sent at the step before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.kernels.sequence_parallel.collectives import Group, Traffic
from gen.kernels.sequence_parallel.patches import OneProcess, PatchExchange, Processes
from gen.models.dit import DiTNet
from gen.models.edm2 import EDM2Net
from gen.models.engines.lib.patched import PatchesNet
from gen.models.engines.lib.patched_pipelines import LivePatches, PipelinePatches
from gen.models.engines.lib.patched_rows import RowPatchesNet
from gen.models.engines.lib.patched_tokens import TokenPatchesNet
from gen.models.interop.pipelines.network import PipelineNet
from gen.models.lightning_dit import LightningDiTNet
from gen.models.song_unet import SongUNetNet
from gen.models.unet import UNetNet

__all__ = ["Patches"]

FAMILIES: dict[type[nn.Module], tuple[str, type[PatchesNet]]] = {
    DiTNet: ("dit", TokenPatchesNet),
    LightningDiTNet: ("lightning_dit", TokenPatchesNet),
    UNetNet: ("unet", RowPatchesNet),
    SongUNetNet: ("song_unet", RowPatchesNet),
    EDM2Net: ("edm2", RowPatchesNet),
}


@dataclass(frozen=True)
class Patches:
    """A network of whose patches each process computes an equal part: DistriFusion and PCPP.

    It takes a DiT or LightningDiT by tokens, and a U-Net (unet, song_unet, edm2, or that of a pipeline) by rows. After
    its warm-up a process attends to its own fresh keys and values and to the others' of the step before, which travel
    while it computes (DistriFusion, Li et al. 2024, arXiv 2402.19481); with a portion only to the nearest share of its
    two neighbours' (PCPP, Zhang et al. 2024, arXiv 2412.02962). So do a U-Net's convolutions get the rows around
    theirs, and its group norms the whole's moments, to which a process adds what its own have changed by. All processes
    have the whole network and the whole output, so solvers, and guides that need all of a sample, are as ever. Samples
    are approximate. Calls outside a loop of Pipeline.sample are synchronous, and so is a branch's first evaluation.

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

    copies = False  # a pipeline's network, which is used as it is

    @property
    def collective(self) -> bool:
        """Whether processes compute each sample together, so that samples are not shared out between them."""
        return self.parts is None

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu", group: Group = None) -> PatchesNet:
        """Return a copy of the network, or a pipeline's own; UserError where it does not divide."""
        if type(net) not in FAMILIES and not isinstance(net, PipelineNet):
            allowed = ", ".join(name for name, _ in FAMILIES.values())
            raise UserError(f"the engine 'patches' shares out {allowed} and networks of pipelines, not a "
                            f"{type(net).__name__}")  # fmt: skip
        if isinstance(net, PipelineNet):
            return PipelinePatches(net, self, self.exchange(group))
        return FAMILIES[type(net)][1](net, self, self.exchange(group)).to(device)

    def live(self, networks: Sequence[nn.Module]) -> LivePatches:
        """Return the parts of a live pipeline's networks; UserError for one that cannot be shared out.

        Args:
            networks: of diffusers.
        """
        return LivePatches(networks, self, self.exchange())

    def exchange(self, group: Group = None) -> PatchExchange:
        """Return the exchange between parts.

        Args:
            group: the processes; all by default.
        """
        if self.parts is None and not dist.is_initialized():
            raise UserError("the engine 'patches' needs processes: start them with torchrun and init_process_group, "
                            "or give parts = 2 to try it in one")  # fmt: skip
        return Processes(group) if self.parts is None else OneProcess(self.parts, Traffic())
