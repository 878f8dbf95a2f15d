"""Documents: several texts in one window of tokens, each by itself.

`documents` are int64 [B, N], the number of the document of each position; the positions of one follow each other. A
position attends to those of its own document alone, and positions are counted from the start of each. Padding is a
document too, that nothing is trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["document_positions", "document_starts"]


def document_starts(documents: Tensor) -> Tensor:
    """Return which positions are the first of their document, bool [B, N].

    Args:
        documents: int64 [B, N].
    """
    first = torch.ones_like(documents[:, :1], dtype=torch.bool)
    return torch.cat([first, documents[:, 1:] != documents[:, :-1]], 1)


def document_positions(documents: Tensor) -> Tensor:
    """Return each position's index within its document, int64 [B, N].

    Args:
        documents: int64 [B, N].
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    return index - (index * document_starts(documents)).cummax(1).values
