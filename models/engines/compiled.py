"""torch.compile over the whole network, and over its parts where a tap must look in between."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.models.engines.lib.prepared import Dtype, Prepared, chosen
from gen.models.layers.block import Block

__all__ = ["Compiled"]


@dataclass(frozen=True)
class Compiled:
    """One graph without breaks for every shape; on a GPU replayed as a CUDA graph, on the CPU with frozen weights.

    The first evaluation of a shape takes a minute; a CPU needs a C++ compiler. With a cache's tap the graphs are the
    blocks' attention and MLP, one for all blocks, and the tap stands between them. graphs: CUDA graphs. autotune: try
    more ways to multiply, which takes minutes. shapes: how many may be compiled, before PyTorch refuses the next; one
    older than 2.13 may refuse the ninth.
    """

    dtype: Dtype = "auto"
    graphs: bool = True
    autotune: bool = False
    shapes: int = 256

    def __post_init__(self) -> None:
        if self.shapes < 1:
            raise UserError(f"Compiled: shapes = {self.shapes}; it must be at least 1")

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Prepared:
        dtype, why = chosen(self.dtype, device)
        cuda = torch.device(device).type == "cuda"
        made = Prepared(net, dtype, f"compiled ({why})").to(device)
        options: dict[str, Any] = {"triton.cudagraphs": self.graphs} if cuda else {"freezing": True}
        options |= {"max_autotune": True} if self.autotune else {}
        known = inspect.signature(torch.compile).parameters
        how: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        how |= {"recompile_limit": self.shapes} if "recompile_limit" in known else {}
        for module in made.modules():
            if isinstance(module, Block):  # parts of one shape share one graph
                module.attn.compile(**how)
                module.mlp.compile(**how)
        whole = torch.compile(made.inner, options=options, **how)
        made.whole = _Replayed(whole) if cuda and self.graphs else whole
        return made


class _Replayed:
    """A CUDA graph's output is written over by its next replay, so it is copied out."""

    def __init__(self, whole: Any):
        self.whole = whole

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        out: Tensor = self.whole(*args, **kwargs)
        return out.clone()
