"""The arguments of a network's call as a flat mapping: rows of the batch, which are conditions, and constants.

Names of nested arguments are joined by dots: "added_cond_kwargs.time_ids", and in lists "image_embeds.0".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.models.interop.pipelines.families import Family

__all__ = ["EveryRow", "flatten", "nest", "on_device", "same", "separate", "with_equal_lengths"]

Flat = dict[str, Any]
PICTURES = "image_embeds."  # in names of lists with what an IP-adapter sees


@dataclass(frozen=True)
class EveryRow:
    """An argument that is a list as long as the batch, with one value for all rows.

    Attributes:
        value: of every row.
    """

    value: Any


def flatten(arguments: Mapping[str, Any], lists: tuple[str, ...] = (), prefix: str = "") -> Flat:
    """Return nested arguments under dotted names.

    Args:
        arguments: by name; mappings and lists of tensors in it are nested.
        lists: names of lists that are kept whole.
        prefix: of all names.
    """
    flat: Flat = {}
    for key, value in arguments.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, lists, f"{name}.")
        elif isinstance(value, list) and name not in lists and any(isinstance(v, Tensor) for v in value):
            flat |= flatten({str(i): v for i, v in enumerate(value)}, lists, f"{name}.")
        else:
            flat[name] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of their dotted names; inverse of `flatten`.

    Args:
        flat: by dotted name.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return {key: _lists(value) for key, value in tree.items()}


def _lists(node: Any) -> Any:
    """Return a nested mapping whose keys 0, 1, ... are lists."""
    if not isinstance(node, dict) or not node:
        return node
    node = {key: _lists(value) for key, value in node.items()}
    return [node[str(i)] for i in range(len(node))] if all(key.isdigit() for key in node) else node


def separate(family: Family, flat: Mapping[str, Any], rows: int) -> tuple[Flat, Flat]:
    """Return the arguments that are rows of the batch, and the constants.

    Args:
        family: of the network.
        flat: a call's arguments but for state and time.
        rows: of the batch of the call.
    """
    of_rows: Flat = {}
    constants: Flat = {}
    for name, value in flat.items():
        if name in family.lists or (
            isinstance(value, Tensor) and value.ndim and len(value) == rows and name not in family.constants
        ):
            of_rows[name] = value
        elif PICTURES in name and isinstance(value, Tensor):
            raise UserError(f"{name} of an IP-adapter has {len(value)} rows for a batch of {rows}: give pictures, or "
                            "their embeddings for one prompt")  # fmt: skip
        elif name in family.constants:
            constants[name] = value
        elif isinstance(value, list) and len(value) == rows and all(same(v, value[0]) for v in value):
            constants[name] = EveryRow(value[0])
        elif isinstance(value, list):
            raise UserError(f"the list {name} has {len(value)} values for {rows} rows, which are no tensors of rows")
        else:
            constants[name] = value
    return of_rows, constants


def same(a: Any, b: Any) -> bool:
    """Return whether two arguments are equal, tensors in tuples and lists too.

    Args:
        a, b: values of one name.
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b, strict=True))
    return bool(a == b)


def with_equal_lengths(family: Family, branches: list[Flat]) -> list[Flat]:
    """Return the rows of all branches with one length for each name, so that they can be one batch.

    Shorter texts are padded, and masked where the family has a mask, which then is always there, so that all conditions
    of a pipeline have the same names; rows of lists get their number of tokens under the name with ".length".
    UserError for texts of unequal length without a mask.

    Args:
        family: of the network.
        branches: tensors [B, ...] by name, or lists of rows; of the positive and perhaps the negative branch.
    """
    branches = [dict(branch) for branch in branches]
    for name in family.lists:
        longest = max(len(row) for branch in branches for row in branch[name])
        for branch in branches:
            lengths = [len(row) for row in branch[name]]
            branch[f"{name}.length"] = torch.tensor(lengths, device=branch[name][0].device)
            branch[name] = torch.stack([_padded(row, 0, longest) for row in branch[name]])
    names = [name for name, value in branches[0].items() if value.ndim > 1]
    shapes = {name: {branch[name].shape[1:] for branch in branches if name in branch} for name in names}
    uneven = [name for name, found in shapes.items() if len(found) > 1 and name != family.mask]
    if family.mask:
        _add_masks(family.mask, branches)
        uneven += [family.mask] if uneven else []
    if uneven and not family.mask:
        tokens = " and ".join(str(branch[uneven[0]].shape[1]) for branch in branches)
        raise UserError(f"{uneven[0]} of the prompt and of its negative have {tokens} tokens, and this network takes "
                        "no mask: encode both to one length")  # fmt: skip
    for name in uneven:
        longest = max(branch[name].shape[1] for branch in branches)
        for branch in branches:
            branch[name] = _padded(branch[name], 1, longest)
    if odd := sorted(branches[0].keys() ^ branches[-1].keys()):
        raise UserError(f"{odd[0]} is given for the prompt or for its negative alone; give it for both or for neither")
    return branches


def _add_masks(name: str, branches: list[Flat]) -> None:
    """Add the mask to branches without one, whose tokens are all real."""
    like = next((branch[name] for branch in branches if name in branch), None)
    dtype = torch.bool if like is None else like.dtype
    for branch in branches:
        if name not in branch:
            text = branch["encoder_hidden_states"]
            branch[name] = torch.ones(text.shape[:2], dtype=dtype, device=text.device)


def _padded(value: Tensor, dim: int, length: int) -> Tensor:
    """Return a tensor with zeros behind it along dim, up to a length."""
    shape = list(value.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim) if shape[dim] else value


def on_device(value: Any, device: torch.device) -> Any:
    """Return a constant with the tensors in it on a device.

    Args:
        value: of any kind.
        device: to be on.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(v, device) for v in value)
    return value
