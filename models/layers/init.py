"""How weights begin: the rules of DiT, which most transformer denoisers keep (Peebles & Xie 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["embeddings", "patches", "scratch", "zero"]


def scratch(module: nn.Module) -> None:
    """For nn.Module.apply: linear maps Xavier-uniform without offset, label tables N(0, 0.02^2)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        patches(module)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def patches(module: Any) -> None:
    """For a map of patches, linear or a convolution: Xavier-uniform without offset, as the linear map that it is."""
    nn.init.xavier_uniform_(module.weight.flatten(1))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def embeddings(net: nn.Module) -> None:
    """The weights of the networks of time, and the table of labels, N(0, 0.02^2)."""
    for name, weight in net.named_parameters():
        if name.startswith(("t_embedder.mlp", "y_embedder")) and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)


def zero(net: nn.Module) -> None:
    """adaLN-Zero: blocks add nothing, the output is zero; and the embedding of time begins at N(0, 0.02^2)."""
    for name, weight in net.named_parameters():
        if name.endswith("adaLN_modulation.1.weight") or name == "final_layer.linear.weight":
            nn.init.zeros_(weight)
        elif name.startswith("t_embedder.mlp") and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)
