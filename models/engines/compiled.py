"""torch.compile over the whole network, and over its parts where a tap must look in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.engines._prepared import Dtype, Prepared, chosen
from gen.models.layers.block import Block

__all__ = ["Compiled"]


@dataclass(frozen=True)
class Compiled:
    """One graph without breaks for every shape; on a GPU replayed as a CUDA graph, on the CPU with frozen weights.

    The first evaluation of a shape takes a minute; a CPU needs a C++ compiler. With a cache's tap the graphs are the
    blocks' attention and MLP, one for all blocks, and the tap stands between them. graphs: CUDA graphs. autotune: try
    more ways to multiply, which takes minutes.
    """

    dtype: Dtype = "auto"
    graphs: bool = True
    autotune: bool = False

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Prepared:
        dtype, why = chosen(self.dtype, device)
        cuda = torch.device(device).type == "cuda"
        made = Prepared(net, dtype, f"compiled ({why})").to(device)
        options: dict[str, Any] = {"triton.cudagraphs": self.graphs} if cuda else {"freezing": True}
        options |= {"max_autotune": True} if self.autotune else {}
        for module in made.modules():
            if isinstance(module, Block):  # parts of one shape share one graph
                module.attn.compile(fullgraph=True, dynamic=False)
                module.mlp.compile(fullgraph=True, dynamic=False)
        whole = torch.compile(made.inner, fullgraph=True, dynamic=False, options=options)
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
