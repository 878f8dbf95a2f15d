"""LLaDA: every masked token's cross-entropy over the share that is masked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import Masking, Tokens, report, stratified, token_losses, tokens_of

__all__ = ["LLaDA"]


@dataclass(frozen=True)
class LLaDA(Masking):
    """Sum of CE / p over the masked tokens of a text, over its number of trained tokens; the mean over texts.

    Nie et al. 2025, eqs. 3 and 5: p = (1 - eps) u + eps is one number per text, u uniform. Prompts are never masked;
    without prompts this is the pre-training loss. The path plays no part. short: the share of texts that are cut to a
    random length (LLaDA draws it once per batch, here each text for itself, so that batches may be cut anyhow).
    stratified: one u in each of n equal shares, by place in the batch; LLaDA draws them alone.
    """

    eps: float = 1e-3
    short: float = 0.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1 or not 0 <= self.short <= 1:
            raise UserError(f"LLaDA: eps = {self.eps}, short = {self.short}; 0 <= eps < 1 and 0 <= short <= 1")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        tokens = tokens_of(batch, self.cut(batch) if self.short else None)
        u = batch.noise.uniform("t")
        losses, masked, right = self.losses(roles, tokens, stratified(u) if self.stratified else u, self.hits(batch))
        yield "net", (losses.sum(1) / tokens.count).mean(), dict(report(masked, tokens.trained, right))

    def hits(self, batch: Batch) -> Tensor:
        """Uniform numbers [B, L]: a token is masked where its own is below p."""
        return batch.noise.uniform("mask", batch.x.shape[1])

    def cut(self, batch: Batch) -> Tensor:
        """Where each text is cut, [B]: at its end or, for a share of them, uniformly after the prompt's first place."""
        whole = tokens_of(batch)
        first = whole.trained.to(torch.uint8).argmax(1)
        random = first + 1 + (batch.noise.uniform("cut.at").to(first.device) * (whole.length - first)).long()
        return torch.where(batch.noise.uniform("cut").to(first.device) < self.short, random, whole.length)

    def losses(self, roles: Roles, tokens: Tokens, u: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token, [B, L]: CE / p where it is masked, else 0; whether it is masked; whether it was guessed."""
        net, x = roles["net"].net, tokens.x
        p, hits = ((1 - self.eps) * u + self.eps).to(x.device), hits.to(x.device)
        noisy = corrupt(x, p, hits, unwrap(net).mask_token_id, ~tokens.trained)
        masked = noisy != x
        losses, right = token_losses(net(noisy, tokens.lengths), x)
        return torch.where(masked, losses / p[:, None].to(losses.dtype), 0), masked, right

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on fixed masks at stratified times: a bound on the nats per token."""
        tokens = tokens_of(batch)
        losses, _, _ = self.losses(roles, tokens, stratified(batch.noise.uniform("t")), self.hits(batch))
        return (losses.sum(1) / tokens.count).mean()
