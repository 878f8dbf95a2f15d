"""Order among numbers that rounding alone tells apart: the first of them comes first.

Rounding depends on the batch. Where positions or tokens are equally good, as all positions of an empty canvas are, it
must not choose between them, or a text would depend on the texts beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.text.host import known_to_be_none

__all__ = ["TIE", "descending", "grouped"]

TIE = 1e-5  # float32 networks give probabilities and entropies to about 1e-6


def descending(value: Tensor) -> Tensor:
    """Return the indices that sort the last dimension from the largest value down, the lowest index among equals.

    Equal are neighbours in that order that differ by at most TIE.

    Args:
        value: numbers [..., W]; -inf comes last.
    """
    ordered, index = value.sort(dim=-1, descending=True, stable=True)
    if known_to_be_none(ordered[..., :-1] - ordered[..., 1:] <= TIE):  # as mostly
        return index
    return grouped(value)[0]


def grouped(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of `descending`, and for each of them the number of its group of equals, from 0.

    Args:
        value: numbers [..., W].
    """
    ordered, index = value.sort(dim=-1, descending=True)
    apart = ordered[..., :-1] - ordered[..., 1:] > TIE  # False between -inf and -inf
    group = torch.nn.functional.pad(apart.cumsum(-1), (1, 0))
    return index.gather(-1, torch.add(index, group, alpha=value.shape[-1]).argsort(-1)), group
