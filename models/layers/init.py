"""Initialisation of weights: the rules of DiT, which most transformer denoisers keep (Peebles & Xie 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["adaln_zero", "normal_embeddings", "xavier", "xavier_patches", "zeros"]


def xavier(module: nn.Module) -> None:
    """Initialise one module, for nn.Module.apply: linear maps Xavier-uniform, biases zero, label tables N(0, 0.02^2).

    Args:
        module: any; only linear layers, convolutions and embeddings are changed.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        xavier_patches(module)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def xavier_patches(module: Any) -> None:
    """Initialise a map of patches Xavier-uniform, with a bias of zero, as the linear map that it is.

    Args:
        module: a linear layer or a convolution.
    """
    nn.init.xavier_uniform_(module.weight.flatten(1))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def normal_embeddings(net: nn.Module) -> None:
    """Initialise the embeddings of time and the table of labels, N(0, 0.02^2).

    Args:
        net: the network, whose names are "t_embedder.mlp..." and "y_embedder...".
    """
    for name, weight in net.named_parameters():
        if name.startswith(("t_embedder.mlp", "y_embedder")) and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)


def adaln_zero(net: nn.Module) -> None:
    """Initialise as adaLN-Zero: blocks add nothing, the output is zero; and the embedding of time is N(0, 0.02^2).

    Args:
        net: the network, with the names of DiT.
    """
    for name, weight in net.named_parameters():
        if name.endswith("adaLN_modulation.1.weight") or name == "final_layer.linear.weight":
            nn.init.zeros_(weight)
        elif name.startswith("t_embedder.mlp") and name.endswith("weight"):
            nn.init.normal_(weight, std=0.02)


def zeros(*modules: Any) -> None:
    """Set all parameters of the modules to zero.

    Args:
        *modules: any.
    """
    for module in modules:
        for weight in module.parameters():
            nn.init.zeros_(weight)
