"""Experts of text models: tensors of one expert each, stacked as gen.models.layers.experts has them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping

from torch import Tensor, stack

from gen.config.errors import UserError

__all__ = ["StackedTensors", "split_experts"]

PRODUCTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


class StackedTensors(Mapping[str, Tensor]):
    """Tensors by name, some of which are stacked from parts whenever they are asked for: no two are in memory.

    Args:
        tensors: whole ones.
        parts: those of each stack.
    """

    def __init__(self, tensors: Mapping[str, Tensor], parts: Mapping[str, list[Tensor]]):
        self.tensors, self.parts = tensors, parts

    def __getitem__(self, name: str) -> Tensor:
        return stack(self.parts[name]) if name in self.parts else self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.tensors
        yield from self.parts

    def __len__(self) -> int:
        return len(self.tensors) + len(self.parts)

    def without(self, names: Container[str]) -> StackedTensors:
        """Return the tensors with other names."""
        return StackedTensors({name: value for name, value in self.tensors.items() if name not in names}, self.parts)


def split_experts(tensors: Mapping[str, Tensor], layers: str) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return the tensors that are of no expert, and those of experts in order, by our name of their stack.

    Args:
        tensors: the file's.
        layers: what comes before a block's number; after it follows mlp.experts.E.gate_proj.weight, or up_proj or
            down_proj.

    Raises:
        UserError: for an expert that is missing, or of another shape or dtype than the others.
    """
    others, numbered = dict[str, Tensor](), dict[str, dict[int, Tensor]]()
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(layers)}\.(\d+)\.mlp\.experts\.(\d+)\.({'|'.join(PRODUCTS)})\.weight", name)
        if match is None:
            others[name] = tensor
        else:
            ours = f"blocks.{int(match[1])}.mlp.experts.{PRODUCTS[match[3]]}"
            numbered.setdefault(ours, {})[int(match[2])] = tensor
    parts = {}
    for ours, by_number in numbered.items():
        missing = set(range(max(by_number) + 1)) - set(by_number)
        if missing:
            raise UserError(f"{ours}: no expert {min(missing)}, but {max(by_number)}")
        parts[ours] = [by_number[i] for i in range(len(by_number))]
        kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in parts[ours]}
        if len(kinds) > 1:
            raise UserError(f"{ours}: experts of {len(kinds)} shapes or dtypes, expected one")
    return others, parts
