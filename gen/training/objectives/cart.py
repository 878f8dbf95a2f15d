"""Dream's masked objective: a masked token counts by how much of what is near it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, to_device
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, text_uniforms, token_losses

__all__ = ["Cart", "context_weights"]

NEGLIGIBLE = 1e-9  # of a weight: tokens that are further away than where the decay reaches it are left out


@dataclass(frozen=True)
class Cart(MaskedObjective):
    """Sum of w CE over the masked tokens, over the number of trained ones; w is the token's context (CART).

    Ye et al. 2025 (Dream, arXiv 2508.15487), section 3: w(i) = 1/2 sum over shown j of p (1 - p)^(|i - j| - 1). A text
    is masked by one fraction, (1 - eps) u + eps, u uniform. No bound of the likelihood: what nothing near it shows
    hardly counts.

    Attributes:
        p: of the geometric distribution, in (0, 1); small ones look far. The paper names none; 0.3 is what the public
            trainer dllm has.
        eps: least fraction that is masked.
        stratified: one u in each of n equal shares, by index in the batch.
    """

    p: float = 0.3
    eps: float = 1e-3
    stratified: bool = True

    def __post_init__(self) -> None:
        check_fields(self, p="(0, 1)", eps="[0, 1)", balance="[0, inf)")

    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        return text_uniforms(batch, stratified)

    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, x = roles["net"].net, tokens.x
        fraction = to_device((1 - self.eps) * t + self.eps, x.device)
        noisy = corrupt(
            x, tokens.of_texts(fraction), to_device(u, x.device), unwrap(net).mask_token_id, ~tokens.trained
        )
        masked = noisy != x
        losses, likeliest = token_losses(net(noisy, **tokens.attended), x)
        weight = context_weights(~masked, tokens.texts, self.p).to(losses)
        return torch.where(masked, losses * weight, 0), masked, likeliest


def context_weights(shown: Tensor, documents: Tensor, p: float) -> Tensor:
    """Return 1/2 sum over shown j != i of its document of p (1 - p)^(|i - j| - 1) for each i, float64 [B, N].

    Args:
        shown: bool [B, N].
        documents: int64 [B, N], from 0.
        p: in (0, 1).
    """
    reach = min(shown.shape[1] - 1, math.ceil(math.log(NEGLIGIBLE) / math.log(1 - p)))
    if reach < 1:
        return torch.zeros(shown.shape, dtype=torch.float64, device=shown.device)
    side = 0.5 * p * (1 - p) ** torch.arange(reach, dtype=torch.float64, device=shown.device)
    kernel = torch.cat([side.flip(0), side.new_zeros(1), side])  # [2 reach + 1]
    own = nn.functional.one_hot(documents).mT.double()  # [B, documents, N]
    near = nn.functional.conv1d((own * shown[:, None]).flatten(0, 1)[:, None], kernel[None, None], padding=reach)
    return (near.view_as(own) * own).sum(1)
