"""Fast-dLLM v2: a next-token model learns to fill blocks, from two noisy copies that complement each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, to_device
from gen.training.objectives.bd3 import block_size_of, block_uniforms, logits_after_clean_blocks
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, token_losses

__all__ = ["FastDLLM"]


@dataclass(frozen=True)
class FastDLLM(MaskedObjective):
    """Mean CE over the masked tokens of two copies of each text, where one masks what the other shows.

    Wu et al. 2025, section 3: every block masks a fraction p = (1 - eps) u + eps of its tokens, u uniform. Since the
    pair masks every trained token once, no weight is needed. Copies see the clean blocks before theirs
    (gen.training.objectives.bd3); blocks are the network's own, and its shift is 1 if it was a next-token model. The
    published code reads the first token of a block off the noisy copy of the block before it, here it is the clean one,
    as in decoding.

    Attributes:
        eps: least fraction that is masked.
        complementary: False for the first copy alone, the mean still over all trained tokens.
    """

    eps: float = 1e-3
    complementary: bool = True
    trains_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)", balance="[0, inf)")

    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        return block_uniforms(net, batch, stratified)

    def copies(self, net: nn.Module, tokens: TokenBatch, t: Tensor, u: Tensor) -> Tensor:
        """Return the noisy copies: [2 B, L], first copies first, or [B, L]; t [B, blocks], u [B, L]."""
        x, mask, block_size = tokens.x, unwrap(net).mask_token_id, block_size_of(net, tokens.x.shape[1])
        p = ((1 - self.eps) * t + self.eps).repeat_interleave(block_size, 1)[:, : x.shape[1]]
        first = corrupt(x, to_device(p, x.device), to_device(u, x.device), mask, ~tokens.trained)
        if not self.complementary:
            return first
        return torch.cat([first, torch.where(tokens.trained & (first == x), mask, x)])

    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return those of the base for both copies, [2 B, L]."""
        net = roles["net"].net
        noisy = self.copies(net, tokens, t, u)
        n = len(noisy) // len(tokens.x)
        documents = None if tokens.documents is None else tokens.documents.repeat(n, 1)
        clean = replace(tokens, x=tokens.x.repeat(n, 1), length=tokens.length.repeat(n), documents=documents)
        masked = noisy != clean.x
        logits = logits_after_clean_blocks(net, noisy, clean, block_size_of(net, noisy.shape[1]))
        losses, likeliest = token_losses(logits, clean.x)
        return torch.where(masked, losses, 0), masked, likeliest
