"""Fast-dLLM v2: a next-token model learns to fill blocks, from two noisy copies that complement each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.bd3 import beside_clean, block_of
from gen.training.objectives.lib.masked import Masking, Tokens, report, stratified, token_losses, tokens_of

__all__ = ["FastDLLM"]


@dataclass(frozen=True)
class FastDLLM(Masking):
    """Mean CE over the masked tokens of two copies of each text, where one masks what the other shows.

    Wu et al. 2025, section 3: every block masks a share p = (1 - eps) u + eps of its tokens, u uniform. Since the pair
    masks every trained token once, no weight is needed. Copies see the clean blocks before theirs
    (gen.training.objectives.bd3); blocks are the network's own, and its shift is 1 if it was a next-token model. The
    published code reads the first token of a block off the noisy copy of the block before it, here it is the clean one,
    as in decoding. complementary: False for the first copy alone, the mean still over all trained tokens.
    """

    eps: float = 1e-3
    complementary: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise UserError(f"FastDLLM: eps = {self.eps}; 0 <= eps < 1")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        tokens = tokens_of(batch)
        length = tokens.x.shape[1]
        u = batch.noise.uniform("t", -(-length // block_of(roles["net"].net, length)))
        losses, masked, right = self.losses(roles, tokens, u, self.hits(batch))
        logs = dict(report(masked, tokens.trained, right))
        yield "net", losses.sum() / tokens.trained.sum().clamp(min=1), logs

    def hits(self, batch: Batch) -> Tensor:
        """Uniform numbers [B, L]: a token is masked in the first copy where its own is below p of its block."""
        return batch.noise.uniform("mask", batch.x.shape[1])

    def views(self, net: object, tokens: Tokens, u: Tensor, hits: Tensor) -> Tensor:
        """The noisy copies: [2 B, L], first copies first, or [B, L]. u [B, blocks], hits [B, L]."""
        x, mask = tokens.x, unwrap(net).mask_token_id  # type: ignore[arg-type]
        p = ((1 - self.eps) * u + self.eps).repeat_interleave(block_of(net, x.shape[1]), 1)[:, : x.shape[1]]
        first = corrupt(x, p.to(x.device), hits.to(x.device), mask, ~tokens.trained)
        if not self.complementary:
            return first
        return torch.cat([first, torch.where(tokens.trained & (first == x), mask, x)])

    def losses(self, roles: Roles, tokens: Tokens, u: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each copy's tokens, [2 B, L]: CE where one is masked, else 0; whether it is masked; whether guessed."""
        net = roles["net"].net
        noisy = self.views(net, tokens, u, hits)
        copies = len(noisy) // len(tokens.x)
        both = replace(tokens, x=tokens.x.repeat(copies, 1), length=tokens.length.repeat(copies))
        masked = noisy != both.x
        losses, right = token_losses(beside_clean(net, noisy, both, block_of(net, noisy.shape[1])), both.x)
        return torch.where(masked, losses, 0), masked, right

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on fixed masks at stratified times."""
        tokens = tokens_of(batch)
        length = tokens.x.shape[1]
        u = stratified(batch.noise.uniform("t", -(-length // block_of(roles["net"].net, length))))
        losses, _, _ = self.losses(roles, tokens, u, self.hits(batch))
        return losses.sum() / tokens.trained.sum().clamp(min=1)
