"""Low-rank adapters by peft: a network learns by small matrices beside its linear layers, which alone are stored.

The network that they were trained on lies in the folder run.init, which gen.load reads, too, and adds them up; or it
was given as an object, as it is to gen.load.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError, shown
from gen.config.fields import check_fields

__all__ = ["LoRA", "adapted", "adapted_copy", "adapter_tensors", "merged"]

A, B = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters W + alpha / rank B A of linear layers (Hu et al. 2021, arXiv 2106.09685); B begins at 0.

    Attributes:
        rank: of the product, at least 1.
        alpha: positive; None for the rank, a factor of 1.
        targets: last parts of the names of the layers that get one, such as "q", "k" and "v", or "attn.o"; () for every
            linear layer but the head.
        dropout: share of an adapter's inputs that are dropped in training.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, rank="[1, 1000000]", alpha="(0, inf)", dropout="[0, 1)")

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def layers(self, net: nn.Module) -> list[str]:
        """Return the names of the layers of a network that get an adapter.

        Args:
            net: the network.

        Raises:
            UserError: if there are none for one of the targets.
        """
        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        if not self.targets:
            return [name for name in linear if name != "head"]
        of = {t: [name for name in linear if f".{name}".endswith(f".{t}")] for t in self.targets}
        for target, names in of.items():
            if not names:
                ends = dict.fromkeys(name.rpartition(".")[2] for name in linear)
                raise UserError(f"lora.targets: no linear layer ends in {target!r}; allowed: {shown(list(ends))}")
        return [name for name in linear if any(name in names for names in of.values())]


def adapted(given: nn.Module, lora: LoRA | None) -> nn.Module:
    """Return the network, changed in place: all of it frozen, with adapters that are trained.

    Args:
        given: the network.
        lora: the adapters; None for none: the network stays as it is.

    Raises:
        MissingDependency: without peft.
        UserError: for targets that the network has not.
    """
    if lora is None:
        return given
    names = lora.layers(given)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingDependency("lora needs peft: pip install 'gen-diffusion[lora]'") from None
    alpha: Any = lora.rank if lora.alpha is None else lora.alpha
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names, lora_dropout=lora.dropout)
    net: Any = inject_adapter_in_model(config, given.requires_grad_(False))
    net.adapted = True  # gen.training.state stores its adapters alone
    return net


def adapted_copy(net: nn.Module) -> nn.Module:
    """Return a copy of a network with its own adapters, beside the same frozen weights.

    Args:
        net: what `adapted` returned.
    """
    shared: dict[int, Any] = {id(p): p for p in net.parameters() if not p.requires_grad}
    return copy.deepcopy(net, shared)


def adapter_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of adapters, by name; all of a network that has none.

    Args:
        tensors: a network's state.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.endswith((A, B))}
    return own or dict(tensors)


@torch.no_grad()
def merged(base: Mapping[str, Tensor], adapters: Mapping[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """Return the state of a network with its adapters added in, in float32 at least, then rounded to its own dtype.

    Args:
        base: the state without adapters.
        adapters: their tensors, as of `adapter_tensors`.
        lora: the adapters.

    Raises:
        UserError: for adapters of another network.
    """
    out = dict(base)
    for name in (name.removesuffix(A) for name in adapters if name.endswith(A)):
        weight, up, down = base.get(f"{name}.weight"), adapters.get(name + B), adapters[name + A]
        if weight is None or up is None or weight.shape != (len(up), down.shape[1]):
            raise UserError(f"the adapter of {name} does not fit the network that run.init holds")
        wide = torch.promote_types(weight.dtype, torch.float32)
        delta = lora.scale * up.to(wide) @ down.to(wide)
        out[f"{name}.weight"] = (weight.to(wide) + delta.to(weight.device)).to(weight.dtype)
    return out
