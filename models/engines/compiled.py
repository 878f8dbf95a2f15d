"""torch.compile over the whole network, and over its parts where a tap must look in between."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.energy import EnergyNet
from gen.models.engines.lib.prepared import Dtype, Prepared, choose_dtype
from gen.models.layers.block import Block
from gen.models.layers.family import FamilyNet
from gen.models.layers.wrapper import Wrapper

__all__ = ["Compiled"]


@dataclass(frozen=True)
class Compiled:
    """One graph for every shape; on a GPU replayed as a CUDA graph, on the CPU with frozen weights.

    Graphs of gen's own networks have no breaks but at an energy's gradient; those of others may. The first evaluation
    of a shape takes a minute; a CPU needs a C++ compiler. With a cache's tap the graphs are the blocks' attention and
    MLP, one for all blocks, and the tap stands between them; they are no CUDA graphs, whose outputs a cache could not
    keep: the next replay writes over them.

    Attributes:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32.
        graphs: use CUDA graphs on a GPU.
        autotune: try more ways to multiply, which takes minutes.
        shapes: how many may be compiled, before PyTorch refuses the next, >= 1; one older than 2.13 may refuse the
            ninth.
    """

    dtype: Dtype = "auto"
    graphs: bool = True
    autotune: bool = False
    shapes: int = 256

    def __post_init__(self) -> None:
        check_fields(self, shapes="[1, inf)")

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Prepared:
        """Return a copy of the network, ready on the device; it is compiled when it is first called."""
        dtype, why = choose_dtype(self.dtype, device, net)
        prepared = Prepared(net, dtype, f"compiled ({why})").to(device)
        self.compile(prepared, device)
        return prepared

    def compile(self, prepared: Prepared, device: torch.device | str) -> None:
        """Have a prepared network compiled when it is first called, in place.

        Args:
            prepared: on the device.
            device: what it is compiled for.
        """
        cuda = torch.device(device).type == "cuda"
        options: dict[str, Any] = {"triton.cudagraphs": self.graphs} if cuda else {"freezing": True}
        options |= {"max_autotune": True} if self.autotune else {}
        known = inspect.signature(torch.compile).parameters
        ours = isinstance(prepared.inner, FamilyNet | Wrapper)
        broken = any(isinstance(module, EnergyNet) for module in prepared.modules())  # by its gradient
        how: dict[str, Any] = {"fullgraph": ours and not broken, "dynamic": False}
        how |= {"recompile_limit": self.shapes} if "recompile_limit" in known else {}
        for module in prepared.modules():
            if isinstance(module, Block):  # parts of one shape share one graph
                module.attn.compile(**how)
                module.mlp.compile(**how)
        compiled = torch.compile(prepared.inner, options=options, **how)
        prepared.compiled = _Replayed(compiled) if cuda and self.graphs else compiled


class _Replayed:
    """A callable that copies its output out of the CUDA graph, whose next replay would write over it."""

    def __init__(self, compiled: Callable[..., Tensor]):
        self.compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*args, **kwargs).clone()
