"""Mixtures of experts: SwiGLUs of which a router chooses a few for each token (Shazeer et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.layers.block import SplitSwiGLU

__all__ = ["Experts", "Mixture", "RoutedExperts", "Router"]


@dataclass(frozen=True)
class Experts:
    """The experts of a text model's blocks; the defaults are LLaDA-MoE's.

    Attributes:
        count: number of experts.
        top_k: experts that each token is given to.
        hidden: channels of an expert's SwiGLU.
        shared: channels of a SwiGLU beside the experts that all tokens pass; 0 for none.
        dense: number of blocks, the first ones, that have a SwiGLU of Text's `hidden` in place of experts.
        score: what makes the router's products scores: a softmax over the experts, or the sigmoid of each.
        bias: each expert has an offset to its score that counts in the choice alone (Wang et al. 2024, arXiv
            2408.15664).
        groups, top_groups: experts are chosen from the `top_groups` best of so many equal groups; a group is as good as
            its two best experts together (DeepSeek-V3, arXiv 2412.19437).
        normalised: the scores of a token's experts are divided by their sum.
        scale: factor on the scores.
    """

    count: int = 64
    top_k: int = 8
    hidden: int = 1024
    shared: int = 0
    dense: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    normalised: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self, count="[1, inf)", top_k="[1, count]", hidden="[1, inf)", shared="[0, inf)", dense="[0, inf)",
            groups="[1, count]", top_groups="[1, groups]", scale="(0, inf)",
        )  # fmt: skip
        size = self.count // self.groups
        if self.count % self.groups or self.top_k > size * self.top_groups or (self.groups > 1 and size < 2):
            raise UserError(
                f"Experts: {self.count} in {self.groups} groups, {self.top_k} of {self.top_groups} groups; groups are "
                "equal, of two experts or more, and those chosen hold top_k"
            )


class Router(nn.Module):
    """Chooses the experts of each token; scores are float32, or float64 of a network in float64.

    Attributes:
        is_router: what gen.training.objectives.lib.routing knows it by.
    """

    is_router = True
    expert_bias: Tensor | None

    def __init__(self, width: int, spec: Experts):
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.count, width))
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("expert_bias", torch.zeros(spec.count) if spec.bias else None)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's experts, int64 [..., top_k], their weights [..., top_k], and all scores [..., count].

        h is [..., width].
        """
        spec, wide = self.spec, torch.promote_types(h.dtype, torch.float32)
        kind = "cpu" if h.device.type == "meta" else h.device.type
        with torch.autocast(kind, enabled=False):  # or training chooses others than decoding
            products = linear(h.to(wide), self.weight.to(wide))  # [..., count]
        scores = products.softmax(-1) if spec.score == "softmax" else products.sigmoid()
        chosen_by = scores.detach() if self.expert_bias is None else scores.detach() + self.expert_bias
        if spec.groups > 1:
            grouped = chosen_by.unflatten(-1, (spec.groups, -1))  # [..., groups, count / groups]
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(spec.top_groups, dim=-1).indices
            outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
            chosen_by = grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)
        experts = chosen_by.topk(spec.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if spec.normalised and spec.top_k > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, spec.scale * weights, scores


class RoutedExperts(nn.Module):
    """Experts w2(silu(w1(h)) * w3(h)), each computed once for all of its tokens.

    Attributes:
        w1, w3: [count, hidden, width].
        w2: [count, width, hidden].
        first: number of the first expert that is here; others are those of other processes, and add nothing.
        shared_out: whether other processes have them (gen.models.layers.tensor_parallel).
    """

    def __init__(self, width: int, spec: Experts):
        super().__init__()
        self.first, self.shared_out = 0, False
        self.w1 = nn.Parameter(torch.empty(spec.count, spec.hidden, width))
        self.w2 = nn.Parameter(torch.empty(spec.count, width, spec.hidden))
        self.w3 = nn.Parameter(torch.empty(spec.count, spec.hidden, width))
        for weight in (self.w1, self.w2, self.w3):
            nn.init.normal_(weight, std=0.02)

    def forward(self, h: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts, [T, width].

        Args:
            h: tokens [T, width].
            experts, weights: of each token, [T, k].
        """
        w1, w2, w3 = (_local(weight) if self.shared_out else weight for weight in (self.w1, self.w2, self.w3))
        flat, k = experts.flatten(), experts.shape[1]
        order = flat.argsort(stable=True)  # tokens by expert: those of one expert are neighbours
        ends = _bounds(flat, self.first + len(w1))[self.first :]
        here = order[ends[0] : ends[len(w1)]]
        parts = h[here // k].split([ends[e + 1] - ends[e] for e in range(len(w1))])
        out = [linear(silu(linear(x, w1[e])) * linear(x, w3[e]), w2[e]) for e, x in enumerate(parts) if len(x)]
        done = torch.cat(out) if out else h.new_zeros(0, h.shape[1])
        each = done.new_zeros(len(flat), h.shape[1]).index_copy(0, here, done)
        return (each.unflatten(0, (-1, k)).to(weights.dtype) * weights[..., None]).sum(1).to(h.dtype)


class Mixture(nn.Module):
    """The experts of a block, and the SwiGLU beside them, [B, F, width] -> [B, F, width]."""

    def __init__(self, width: int, spec: Experts):
        super().__init__()
        self.router = Router(width, spec)
        self.experts = RoutedExperts(width, spec)
        self.shared = SplitSwiGLU(width, spec.shared) if spec.shared else None

    def forward(self, h: Tensor) -> Tensor:
        experts, weights, _ = self.router(h)  # [B, F, top_k]
        out = self.experts(h.flatten(0, -2), experts.flatten(0, -2), weights.flatten(0, -2)).view_as(h)
        return out if self.shared is None else out + self.shared(h)


def _bounds(experts: Tensor, count: int) -> list[int]:
    """Return where each expert begins among sorted ones, and the last ends; on the meta device as if all were alike."""
    if experts.device.type == "meta":
        return [len(experts) * e // count for e in range(count + 1)]
    return [0, *experts.bincount(minlength=count).cumsum(0).tolist()]


def _local(weight: Any) -> Tensor:
    """Return this process's part of a DTensor."""
    local: Tensor = weight.to_local()
    return local
