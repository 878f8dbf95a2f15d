"""Likelihood of masked diffusion models: bounds by any order of tokens, and their Monte Carlo error.

-log p(text | prompt) is at most the mean, over all orders, of revealing the tokens one by one (Uria et al. 2014). That
is the ELBO of masked diffusion in continuous time, whatever its schedule (Sahoo et al. 2024, eq. 10; Ou et al. 2024),
and as LLaDA computes it: k of n tokens are masked, k uniform in 1 .. n, and their cross-entropy counts n / k (Nie et
al. 2025, eq. 14). A block-causal network bounds each block given the clean ones before it (BD3-LM, Arriola et al. 2025,
eq. 8). Clipped schedules belong to training alone: no number of masks is left out here, which would bound nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.fields import check_arguments
from gen.config.spec import override
from gen.diffusion.noise import Noise, sample_seeds
from gen.eval.estimate import Estimate
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode_steps
from gen.text.prompts import layouts
from gen.text.vocabulary import by_rows

if TYPE_CHECKING:
    from gen.text.contracts import Predictor

__all__ = ["NllBound", "greedy_matches", "nll_bounds"]

Ids = Sequence[int]


@dataclass(frozen=True)
class NllBound:
    """An upper bound of -log p(text | prompt).

    Attributes:
        blocks: nats of each block, n being the masks that were evaluated and se the Monte Carlo standard error, 0
            where these were all masks; one block if the network sees everything.
        lengths: tokens of each block.
    """

    blocks: tuple[Estimate, ...]
    lengths: tuple[int, ...]

    @property
    def nats(self) -> float:
        """The bound of the whole text."""
        return sum(block.value for block in self.blocks)

    @property
    def se(self) -> float:
        """Its Monte Carlo standard error: blocks have masks of their own."""
        return math.hypot(*(block.se or 0.0 for block in self.blocks))


@dataclass(frozen=True, eq=False)
class _Segment:
    """Tokens that are revealed in any order: positions start .. stop - 1 of a canvas that ends at stop."""

    canvas: Ids
    start: int
    seed: int

    @property
    def n(self) -> int:
        return len(self.canvas) - self.start

    def count(self, samples: int) -> int:
        """Return the number of masks that are evaluated: all of them where `samples` are as many."""
        return min(2**self.n - 1, samples)

    def masks(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return masks, bool [M, n], and the weight of each one's cross-entropy, float64 [M]; see `estimate`."""
        n = self.n
        if samples < 2**n - 1:
            u = Noise((self.seed,)).uniform(f"masks.{self.start}", samples * (n + 1)).view(samples, n + 1)
            stratum = torch.arange(samples) // 2
            k = 1 + ((stratum + u[:, 0]) * (2 * n / samples)).long().clamp(max=n - 1)
            return u[:, 1:].argsort(1).argsort(1) < k[:, None], n / k.double()
        masks = (torch.arange(1, 2**n)[:, None] >> torch.arange(n)) % 2 > 0
        size = masks.sum(1)
        return masks, torch.tensor([1 / (k * math.comb(n, k)) for k in size.tolist()], dtype=torch.float64)

    def estimate(self, costs: Tensor, samples: int) -> Estimate:
        """Return the sum over all masks; else the mean, its error from the two draws of each stratum."""
        if samples >= 2**self.n - 1:
            return Estimate(float(costs.sum()), 0.0, len(costs))
        value = float(costs.mean())
        error = math.inf if math.isinf(value) else float((costs[::2] - costs[1::2]).norm()) / samples
        return Estimate(value, error, samples)


@check_arguments(samples="[2, inf)", batch_size="[1, inf)")
def nll_bounds(
    predictor: Predictor,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    *,
    samples: int = 128,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> list[NllBound]:
    """Bound -log p(text | prompt) of each text; bound i depends on its text, its seed and i alone, up to rounding.

    The mask token gets no probability, as in decoding.

    Args:
        predictor: a network or an exact joint distribution.
        prompts, texts: ids of each.
        samples: masks of a block, an even number; all 2^n - 1 of them where that is no more, and the bound is exact.
            They are stratified by the number of masks, two in each stratum, which gives the standard error.
        seed: a number, or one for each text.
        batch_size: masks evaluated together; changes nothing but speed and memory.

    Raises:
        UserError: for an odd number of samples, and for ids outside the vocabulary, the mask's among them.
        NonFinite: if logits are NaN.
    """
    if samples % 2:
        raise UserError(f"nll_bounds: samples = {samples}; two are drawn in each stratum, so it must be even")
    if not texts:
        return []
    layouts(predictor, [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)], 1, Decoding())
    seeds = sample_seeds(seed, len(texts))
    segments = [list(_segments(predictor.block_size, *one)) for one in zip(prompts, texts, seeds, strict=True)]
    rows = ((s, *row) for some in segments for s in some for row in zip(*s.masks(samples), strict=True))
    costs = list[float]()
    while some_rows := list(itertools.islice(rows, batch_size)):
        costs += _costs(predictor, some_rows)
    left, bounds = iter(costs), list[NllBound]()
    for some in segments:
        each = (torch.tensor(list(itertools.islice(left, s.count(samples))), dtype=torch.float64) for s in some)
        estimates = tuple(s.estimate(own, samples) for s, own in zip(some, each, strict=True))
        bounds.append(NllBound(estimates, tuple(s.n for s in some)))
    return bounds


def _segments(block_size: int | None, prompt: Ids, text: Ids, seed: int) -> Iterator[_Segment]:
    """Yield the blocks of a text, cut off by the end of each; blocks are counted from the prompt's beginning."""
    whole, start = [*prompt, *text], len(prompt)
    while start < len(whole):
        stop = len(whole) if block_size is None else min(len(whole), (start // block_size + 1) * block_size)
        yield _Segment(whole[:stop], start, seed)
        start = stop


@torch.no_grad()
def _costs(predictor: Predictor, rows: Sequence[tuple[_Segment, Tensor, Tensor]]) -> list[float]:
    """Return the weighted cross-entropy, in nats, of the tokens that each mask hides."""
    device, mask = getattr(predictor, "device", torch.device("cpu")), predictor.mask_token_id
    lengths = torch.tensor([len(s.canvas) for s, _, _ in rows])
    width = max(s.n for s, _, _ in rows)
    tokens = torch.full((len(rows), int(lengths.max())), mask)
    hidden = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (s, masked, _) in enumerate(rows):
        tokens[i, : len(s.canvas)] = torch.tensor(s.canvas)
        hidden[i, : s.n] = masked
    start = torch.tensor([s.start for s, _, _ in rows])
    positions = torch.minimum(start[:, None] + torch.arange(width), lengths[:, None] - 1)
    targets = tokens.gather(1, positions)
    n = tokens.shape[1]
    slots = torch.where(hidden, positions, n)  # column n is thrown away
    canvas = torch.cat([tokens, tokens[:, :1]], 1).scatter(1, slots, mask)[:, :n]
    logits = predictor(canvas.to(device), lengths.to(device), positions.to(device))
    chosen = by_rows(partial(_log_probability, mask=mask), logits, targets.to(logits.device)).double().cpu()
    if bool(chosen.isnan().any()):
        raise NonFinite("log-likelihood: the network's logits are NaN")
    weight = torch.stack([weight for _, _, weight in rows])
    return (-torch.where(hidden, chosen, 0).sum(1) * weight).tolist()


def _log_probability(logits: Tensor, targets: Tensor, mask: int) -> Tensor:
    """Return the log-probability of each target, [...], float32 at least, where the mask token has none."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    wide[..., mask] = -torch.inf
    return wide.gather(-1, targets[..., None])[..., 0] - wide.logsumexp(-1)


@check_arguments(batch_size="[1, inf)")
def greedy_matches(
    predictor: Predictor,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    decoding: Decoding | None = None,
    *,
    batch_size: int = 64,
) -> list[bool]:
    """Return whether each text is what decoding writes of its length, the likeliest token of the surest position first.

    Args:
        predictor: a network or an exact joint distribution.
        prompts, texts: ids of each.
        decoding: whose block schedule is followed; None for the default one.
        batch_size: texts decoded together; a batch ends as soon as none of them can match.
    """
    changes = {"policy": {"name": "topk", "k": 1}, "kv_plan": None, "stopping_rules": (), "sampling": TokenSampling()}
    how = override(Decoding() if decoding is None else decoding, changes)
    matches = [True] * len(texts)
    rows = [i for i, text in enumerate(texts) if len(text)]
    for part in (rows[a : a + batch_size] for a in range(0, len(rows), batch_size)):
        alive = dict.fromkeys(part, True)
        for step in decode_steps(predictor, [prompts[i] for i in part], [len(texts[i]) for i in part], how):
            for row, tokens in zip(step.rows, step.tokens.tolist(), strict=True):
                i = part[row]
                written = tokens[len(prompts[i]) : len(prompts[i]) + len(texts[i])]
                wanted = zip(written, texts[i], strict=True)
                alive[i] = alive[i] and all(t in (v, predictor.mask_token_id) for t, v in wanted)
            if not any(alive.values()):
                break
        for i, match in alive.items():
            matches[i] = match
    return matches
