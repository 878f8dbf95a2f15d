"""A network of diffusers of which each process computes a part, by hooks; here UNets by rows."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.operations import PartOperations
from gen.models.engines.lib.patched_rows import check_rows, gather_rows, local_rows
from gen.models.engines.lib.rows import RowOperations
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.network_engine import HOOK

__all__ = ["NetworkParts", "UNetRows", "attention_layers", "check_arguments", "foreign_operations"]

BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D")
PROCESSORS = ("AttnProcessor2_0", "FusedAttnProcessor2_0", "IPAdapterAttnProcessor2_0")  # of PyTorch's attention
BACKENDS = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
RESIDUALS = (  # arguments with results of a ControlNet or an adapter
    "down_block_additional_residuals", "down_intrablock_additional_residuals", "mid_block_additional_residual",
    "controlnet_block_samples", "controlnet_single_block_samples", "block_controlnet_hidden_states",
)  # fmt: skip


class NetworkParts(ABC):
    """A network of diffusers that stays as it is, and its parts.

    Args:
        network: of diffusers.
        exchange: between parts.
        portion: of a neighbour's tokens that are attended to; None for all of all parts.

    Attributes:
        kind: of operations.

    Raises:
        UserError: for a network that cannot be shared out.
    """

    kind: ClassVar[type[PartOperations]]

    def __init__(self, network: Any, exchange: PatchExchange, portion: float | None):
        self.network, self.exchange, self.portion = plain_module(network), exchange, portion
        reason = "it is compiled" if hasattr(network, "_orig_mod") else self.reason()
        if reason:
            raise UserError(f"the engine 'patches' cannot share out this {type(self.network).__name__}: {reason}")

    @abstractmethod
    def reason(self) -> str:
        """Return why the network cannot be shared out, in words; "" if it can."""

    @abstractmethod
    def in_parts(self, operations: Any) -> AbstractContextManager[None]:
        """Return a context in which the network computes its part.

        Args:
            operations: of `kind`, for one evaluation.
        """


class UNetRows(NetworkParts):
    """A UNet2DConditionModel, whose first layer is computed of the whole picture by all."""

    kind = RowOperations

    @property
    def halvings(self) -> int:
        """How often the rows are halved."""
        return sum(bool(getattr(block, "downsamplers", None)) for block in self.network.down_blocks)

    def reason(self) -> str:
        """Return why the network cannot be shared out, in words; "" if it can."""
        unet = self.network
        parts = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block else []), *unet.up_blocks]
        if others := [type(part).__name__ for part in parts if type(part).__name__ not in BLOCKS]:
            return f"it has {others[0]}; known are {', '.join(BLOCKS)}"
        for layer in attention_layers(unet):
            processor = type(layer.processor).__name__
            if processor not in PROCESSORS or getattr(layer, "added_kv_proj_dim", None) is not None:
                return f"its attention is of {processor}; known are {', '.join(PROCESSORS)}"
        return "GLIGEN joins objects to pixels" if getattr(unet, "position_net", None) else foreign_operations(unet)

    @contextmanager
    def in_parts(self, operations: RowOperations) -> Iterator[None]:
        """Compute rows between the UNet's first layer and the end of its last one.

        Args:
            operations: for one evaluation.
        """

        def begin(module: Any, args: Any, out: Tensor) -> Tensor:
            check_rows(out.shape[2], self.halvings, self.exchange.parts)
            operations.off = False
            return local_rows(self.exchange, out)

        def end(module: Any, args: Any, out: Tensor) -> Tensor:
            operations.off = True
            return gather_rows(self.exchange, out)

        def attend(module: Any, args: Any, kwargs: Any) -> None:
            given = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
            operations.cross = given is not None

        operations.off, unet = True, self.network
        with ExitStack() as hooks:
            handles = [unet.conv_in.register_forward_hook(begin), unet.conv_out.register_forward_hook(end)]
            handles += [layer.register_forward_pre_hook(attend, with_kwargs=True) for layer in attention_layers(unet)]
            handles.append(unet.register_forward_pre_hook(check_arguments, with_kwargs=True))
            for handle in handles:
                hooks.callback(handle.remove)
            with operations:
                yield


def foreign_operations(network: Any) -> str:
    """Return why a network's modules do not call PyTorch's operations on all of a sample, in words; "" if they do.

    Args:
        network: of diffusers.
    """
    if getattr(network, "_parallel_config", None) is not None:
        return "diffusers shares out its tokens already"
    if any(HOOK in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}) for module in network.modules()):
        return "it is accelerated already: remove() that first"
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    active: Any = None if dispatch is None else dispatch._AttentionBackendRegistry.get_active_backend()[0]
    for processor in (module.processor for module in network.modules() if hasattr(module, "processor")):
        name = type(processor).__name__
        if not hasattr(processor, "_attention_backend"):
            known = name.endswith("2_0") and not name.startswith("XLA")
        else:
            backend = processor._attention_backend or active
            name = str(getattr(backend, "value", backend))
            known = name in BACKENDS
        if not known:
            return f"its attention is of {name}; allowed: PyTorch's, as by set_attention_backend('native')"
    return ""


def check_arguments(module: Any, args: Any, kwargs: Any) -> None:
    """Refuse arguments that are of the whole picture; a hook before a network of diffusers.

    Args:
        module, args, kwargs: as of a hook.
    """
    if given := [name for name in RESIDUALS if kwargs.get(name) is not None]:
        raise UserError(f"the engine 'patches': {given[0]} are of the whole picture")


def attention_layers(network: Any) -> list[Any]:
    """Return the attention modules of a network.

    Args:
        network: of diffusers.
    """
    return [module for module in network.modules() if hasattr(module, "processor") and hasattr(module, "to_q")]
