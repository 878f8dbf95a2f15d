"""The transformer of DINOv2 and CLIP, and their weights by one family of names: that of DINOv2's hub files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import MissingDependency
from gen.eval.features.lib.weights import check_shapes

__all__ = ["Transformer", "filled", "renamed", "weight_file"]

Net = TypeVar("Net", bound=nn.Module)
QKV = re.compile(r"(.*attn\.)([qkv])\.(weight|bias)$")


class Scale(nn.Module):
    """A learned factor of each channel (Touvron et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, h: Tensor) -> Tensor:
        return h * self.gamma


class Attention(nn.Module):
    """Self-attention, [B, T, D] to [B, T, D]; `causal` lets a token see itself and those before it."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads, self.causal = heads, causal

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, D / heads]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, or CLIP's x sigmoid(1.702 x)."""

    def __init__(self, dim: int, quick: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.quick = quick

    def forward(self, h: Tensor) -> Tensor:
        h = self.fc1(h)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Block(nn.Module):
    """A layer with its norms in front."""

    def __init__(self, dim: int, heads: int, eps: float, causal: bool, quick: bool, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps), Attention(dim, heads, causal)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps), Mlp(dim, quick)
        self.ls1, self.ls2 = (Scale(dim) if scaled else nn.Identity() for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.ls1(self.attn(self.norm1(h)))
        return h + self.ls2(self.mlp(self.norm2(h)))


class Transformer(nn.Sequential):
    """Layers one after the other, [B, T, D] to [B, T, D].

    Args:
        depth: layers.
        dim: D.
        heads: of attention.
        eps: of layer norms.
        causal: a token sees itself and those before it.
        quick: CLIP's approximation of GELU.
        scaled: each branch has a learned factor by channel.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        heads: int,
        eps: float,
        causal: bool = False,
        quick: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__(*(Block(dim, heads, eps, causal, quick, scaled) for _ in range(depth)))


def renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return a state dict by other names, with queries, keys and values of each layer as one matrix.

    Args:
        state: tensors by name.
        rules: what to replace by what in names, in order.
    """
    out, parts = dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    for name, tensor in state.items():
        for old, new in rules:
            name = name.replace(old, new)
        if match := QKV.match(name):
            parts.setdefault(f"{match[1]}qkv.{match[3]}", {})[match[2]] = tensor
        else:
            out[name] = tensor
    whole = {name: torch.cat([part[x] for x in "qkv"]) for name, part in parts.items() if len(part) == 3}
    return out | whole


def filled(make: Callable[[], Net], state: Mapping[str, Tensor], source: object) -> Net:
    """Return a frozen network with weights; UserError unless they are exactly its own.

    Args:
        make: builds the network.
        state: its tensors by name.
        source: of the tensors, for errors.
    """
    with torch.device("meta"):
        net = make()
    check_shapes(state, {name: tuple(value.shape) for name, value in net.state_dict().items()}, source)
    net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return net.eval().requires_grad_(False)


def weight_file(path: str, wanted: str) -> Path:
    """Return a file of weights, or that of a folder that transformers' save_pretrained wrote.

    Args:
        path: of the file or folder.
        wanted: what it should hold, for MissingDependency.
    """
    given = Path(path).expanduser()
    files = [given / name for name in ("model.safetensors", "pytorch_model.bin")] if given.is_dir() else [given]
    found = [file for file in files if path and file.is_file()]
    if not found:
        text = path or "no path is given, as by --extractor.path PATH"
        raise MissingDependency(f"{text}: it should be a file or folder with {wanted}")
    return found[0]
