"""Networks of diffusers' pipelines, of which each process computes a part; UNets by rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Chain, Compute, SiteCall, Tap, begin_site, call_site, run_site_call
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.operations import PartOperations
from gen.models.engines.lib.patched import PatchesNet, PatchSettings
from gen.models.engines.lib.patched_rows import check_rows, gather_rows, local_rows
from gen.models.engines.lib.rows import RowOperations
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.network import PipelineNet

__all__ = ["PipelinePatches", "PipelineUNet", "attention_layers"]

BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D")
PROCESSORS = ("AttnProcessor2_0", "FusedAttnProcessor2_0", "IPAdapterAttnProcessor2_0")  # of PyTorch's attention
RESIDUALS = ("down_block_additional_residuals", "down_intrablock_additional_residuals", "mid_block_additional_residual")


class PipelinePatches(PatchesNet):
    """A pipeline's own network, which is not copied: hooks are on it while it is evaluated."""

    divided = ("net",)
    operations_kind: ClassVar[type[PartOperations]]

    @abstractmethod
    def in_parts(self, operations: Any) -> AbstractContextManager[None]:
        """Return a context in which the network computes its part, by operations that are `off` when it begins."""

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if tap is not None:
            return self.inner(x, t, cond, s=s, tap=PartSites(self, tap))
        with self.in_parts(self.operations()):
            return self.inner(x, t, cond, s=s)

    def operations(self) -> PartOperations:
        """Return what computes parts in the evaluation at hand."""
        return self.operations_kind(self.exchange, self.evaluation, self.engine.portion)


class PipelineUNet(PipelinePatches):
    """A pipeline's own UNet2DConditionModel.

    Its first layer is computed of the whole picture by all. Below it, the sites of a tap see this process's rows.
    """

    operations_kind = RowOperations

    def __init__(self, net: PipelineNet, engine: PatchSettings, exchange: PatchExchange):
        unet = plain_module(net.inner)
        if reason := _reason(net, unet):
            raise UserError(f"the engine 'patches' cannot share out this {type(unet).__name__}: {reason}")
        halvings = sum(bool(getattr(block, "downsamplers", None)) for block in unet.down_blocks)
        check_rows(net.state_shape[1], halvings, exchange.parts)
        super().__init__(net, engine, exchange)

    @contextmanager
    def in_parts(self, operations: RowOperations) -> Iterator[None]:
        """Compute rows between the UNet's first layer and the end of its last one."""
        unet: Any = plain_module(self.inner.inner)

        def begin(module: Any, args: Any, out: Tensor) -> Tensor:
            operations.off = False
            return local_rows(self.exchange, out)

        def end(module: Any, args: Any, out: Tensor) -> Tensor:
            operations.off = True
            return gather_rows(self.exchange, out)

        def attend(module: Any, args: Any, kwargs: Any) -> None:
            given = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
            operations.cross = given is not None

        operations.off = True
        with ExitStack() as hooks:
            handles = [unet.conv_in.register_forward_hook(begin), unet.conv_out.register_forward_hook(end)]
            handles += [layer.register_forward_pre_hook(attend, with_kwargs=True) for layer in attention_layers(unet)]
            for handle in handles:
                hooks.callback(handle.remove)
            with operations:
                yield


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
        with self.net.in_parts(self.operations):
            return compute(h)


def attention_layers(network: Any) -> list[Any]:
    """Return the attention modules of a network.

    Args:
        network: of diffusers.
    """
    return [module for module in network.modules() if hasattr(module, "processor") and hasattr(module, "to_q")]


def _reason(net: Any, unet: Any) -> str:
    """Return why a network cannot be shared out by rows, in words; "" if it can."""
    parts = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block else []), *unet.up_blocks]
    if others := [type(part).__name__ for part in parts if type(part).__name__ not in BLOCKS]:
        return f"it has {others[0]}; known are {', '.join(BLOCKS)}"
    for layer in attention_layers(unet):
        processor = type(layer.processor).__name__
        if processor not in PROCESSORS or getattr(layer, "added_kv_proj_dim", None) is not None:
            return f"its attention is of {processor}; known are {', '.join(PROCESSORS)}"
    if isinstance(net.inner, torch.nn.Module) and hasattr(net.inner, "_orig_mod"):
        return "it is compiled"
    given = [key.partition(".")[0] for key in (*net.keys, *net.constants)]
    if residuals := [key for key in given if key in RESIDUALS]:
        return f"{residuals[0]} are of the whole picture"
    return "" if getattr(unet, "position_net", None) is None else "GLIGEN joins objects to the pixels that attend"
