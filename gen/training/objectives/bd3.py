"""BD3-LM: blocks one after another, each by masked diffusion, trained in one pass over a text and its noisy copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import (
    Masking,
    Tokens,
    check_path,
    report,
    stratified,
    token_losses,
    tokens_of,
)

__all__ = ["BD3", "bd3_mask", "beside_clean", "block_of"]


@dataclass(frozen=True)
class BD3(Masking):
    """Sum of path.weight(t) CE over the masked tokens, over the number of trained ones: nats per token.

    Arriola et al. 2025, eq. 8: every block has its own time, t = a + (b - a) u with (a, b) = clip, and sees itself,
    masked, and what is before it, clean. Blocks are the network's own (block-causal from place 0); one that sees
    everything has a single block, and this is MDLM. clip: the paper's clipped schedules; only (1e-3, 1) or wider bounds
    the likelihood, and (1, 1) with weight "one" and blocks of one token is next-token prediction. weight: "one" counts
    every masked token alike, as the paper does from a > 0.5 on. antithetic: one u in each of n equal shares, by the
    block's place in the batch. The paper's resampling of masks outside of the clip is left out.
    """

    clip: tuple[float, float] = (1e-3, 1.0)
    weight: Literal["nelbo", "one"] = "nelbo"
    antithetic: bool = True

    def __post_init__(self) -> None:
        low, high = self.clip
        if not 0 <= low <= high <= 1:
            raise UserError(f"BD3: clip = {self.clip}; 0 <= low <= high <= 1")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        check_path(roles["net"].path, "BD3")
        tokens = tokens_of(batch)
        t = self.times(roles["net"].net, batch, self.antithetic)
        losses, masked, right = self.losses(roles, tokens, t, self.hits(batch))
        yield "net", losses.sum() / tokens.trained.sum().clamp(min=1), dict(report(masked, tokens.trained, right))

    def times(self, net: Any, batch: Batch, antithetic: bool) -> Tensor:
        """A time for each block of each text, [B, blocks]."""
        length = batch.x.shape[1]
        u = batch.noise.uniform("t", -(-length // block_of(net, length)))
        low, high = self.clip
        return low + (high - low) * (stratified(u) if antithetic else u)

    def hits(self, batch: Batch) -> Tensor:
        """Uniform numbers [B, L]: a token is masked where its own is below mask(t) of its block."""
        return batch.noise.uniform("mask", batch.x.shape[1])

    def losses(self, roles: Roles, tokens: Tokens, t: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token, [B, L]: its weighted CE where it is masked, else 0; whether it is masked; whether guessed."""
        net, path, x = roles["net"].net, roles["net"].path, tokens.x
        block = block_of(net, x.shape[1])
        each = t.repeat_interleave(block, 1)[:, : x.shape[1]]
        noisy = corrupt(
            x, path.masked_fraction(each).to(x.device), hits.to(x.device), unwrap(net).mask_token_id, ~tokens.trained
        )
        masked = noisy != x
        losses, right = token_losses(beside_clean(net, noisy, tokens, block), x, unwrap(net).mask_token_id)
        if self.weight == "nelbo":
            losses = losses * path.weight(each).to(losses)
        return torch.where(masked, losses, 0), masked, right

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on fixed masks at stratified times."""
        tokens = tokens_of(batch)
        losses, _, _ = self.losses(roles, tokens, self.times(roles["net"].net, batch, True), self.hits(batch))
        return losses.sum() / tokens.trained.sum().clamp(min=1)


def block_of(net: Any, length: int) -> int:
    """How many tokens a block of a network has; all, where it sees everything."""
    block = unwrap(net).block_size
    return length if block is None else int(block)


def bd3_mask(length: int, block: int) -> Tensor:
    """Who sees whom among [noisy; clean], bool [2 length, 2 length], rows look at columns.

    The noisy see their own noisy block and the clean blocks before it; the clean see clean blocks up to their own.
    """
    positions = torch.arange(2 * length)
    clean, number = positions >= length, positions % length // block
    mine, theirs = number[:, None], number[None]
    same = (clean[:, None] == clean[None]) & (mine == theirs)
    return same | (clean[None] & (mine > theirs))


def beside_clean(net: Any, noisy: Tensor, tokens: Tokens, block: int) -> Tensor:
    """Logits [B, L, V] of noisy blocks, each of which sees the clean ones before it.

    A network with a shift predicts the first token of a block from the last place of the block before it, which is
    clean by then: that place is read off the clean half, as decoding does.
    """
    b, n = noisy.shape
    attention_mask = bd3_mask(n, block).to(noisy.device)
    if tokens.lengths is not None:
        real = torch.arange(n, device=noisy.device) < tokens.length[:, None]
        itself = torch.eye(2 * n, dtype=torch.bool, device=noisy.device)  # else padding would see nothing at all
        attention_mask = (attention_mask & torch.cat([real, real], 1)[:, None]) | itself
    places = torch.arange(n, device=noisy.device)
    positions = torch.where((places % block == 0) & (places > 0), places + unwrap(net).shift * n, places)
    both, again = torch.cat([noisy, tokens.x], 1), torch.cat([places, places])
    return net(both, positions=positions.expand(b, n), attention_mask=attention_mask, position_ids=again)
