"""BD3-LM: blocks one after another, each by masked diffusion, trained in one pass over a text and its noisy copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.net import unwrap
from gen.text.documents import document_starts
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, to_device
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, check_mask_path, stratify, token_losses

__all__ = ["BD3", "block_size_of", "block_uniforms", "logits_after_clean_blocks"]


@dataclass(frozen=True)
class BD3(MaskedObjective):
    """Sum of path.weight(t) CE over the masked tokens, over the number of trained ones: nats per token.

    Arriola et al. 2025, eq. 8: every block has its own time and sees itself, masked, and what is before it, clean.
    Blocks are the network's own (block-causal from position 0); one that sees everything has a single block, and this
    is MDLM. The paper's resampling of masks outside of the clip is left out.

    Attributes:
        clip: times are a + (b - a) u, the paper's clipped schedules; only (1e-3, 1) or wider bounds the likelihood, and
            (1, 1) with weight "one" and blocks of one token is next-token prediction.
        weight: "nelbo", or "one": every masked token counts alike, as the paper does from a > 0.5 on.
        stratified: one u in each of n equal shares, by the block's index in the batch.
    """

    clip: tuple[float, float] = (1e-3, 1.0)
    weight: Literal["nelbo", "one"] = "nelbo"
    stratified: bool = True
    trains_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, clip="[0, 1]", balance="[0, inf)")
        if self.clip[0] > self.clip[1]:
            raise UserError(f"BD3: clip = {self.clip}; it must not fall")

    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        low, high = self.clip
        return low + (high - low) * block_uniforms(net, batch, stratified)

    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, path, x = roles["net"].net, check_mask_path(roles["net"].path, "BD3"), tokens.x
        mask, block_size = unwrap(net).mask_token_id, block_size_of(net, x.shape[1])
        t = t.repeat_interleave(block_size, 1)[:, : x.shape[1]]
        noisy = corrupt(x, to_device(path.masked_fraction(t), x.device), to_device(u, x.device), mask, ~tokens.trained)
        masked = noisy != x
        losses, likeliest = token_losses(logits_after_clean_blocks(net, noisy, tokens, block_size), x, mask)
        if self.weight == "nelbo":
            losses = losses * path.weight(t).to(losses)
        return torch.where(masked, losses, 0), masked, likeliest


def block_size_of(net: nn.Module, length: int) -> int:
    """Return the number of tokens of a network's block; all where it sees everything.

    Args:
        net: a network, wrapped or not.
        length: tokens of a text.
    """
    block_size = unwrap(net).block_size
    return length if block_size is None else int(block_size)


def block_uniforms(net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
    """Draw a uniform number for each block of each text, [B, blocks].

    Args:
        net: whose blocks count.
        batch: a batch of texts.
        stratified: one in each of n equal shares.
    """
    length = batch.x.shape[1]
    u = batch.noise.uniform("t", -(-length // block_size_of(net, length)))
    return stratify(u, batch) if stratified else u


def logits_after_clean_blocks(net: nn.Module, noisy: Tensor, tokens: TokenBatch, block_size: int) -> Tensor:
    """Return the logits [B, L, V] of noisy blocks, each of which sees the clean ones before it.

    A network with a shift predicts the first token of a block from the last position of the block before it, which is
    clean by then: that output is read off the clean half, as decoding does.

    Args:
        net: a network of models/text.py.
        noisy: partly masked ids, int64 [B, L].
        tokens: the clean ones.
        block_size: tokens of a block.
    """
    b, n = noisy.shape
    documents, index, shift = tokens.documents, torch.arange(n, device=noisy.device), unwrap(net).shift
    first = (index % block_size == 0) & (index > 0)
    positions = torch.where(first, index + shift * n, index).expand(b, n)
    if documents is not None:  # the first token of each is predicted by its own position
        positions = torch.where(document_starts(documents), index + shift, positions)
    elif tokens.lengths is not None:  # padding is a document of its own, which the text does not see
        documents = tokens.texts
    documents = None if documents is None else documents.repeat(1, 2)
    both = torch.cat([noisy, tokens.x], 1)
    return net(both, positions=positions, documents=documents, block_diffusion=block_size)
