"""Views made by hand: places whose likeliest tokens have given probabilities."""

from __future__ import annotations

import torch

from gen.text.contracts import StepView

WORDS = 40


def table(confidences, best=None):
    """Log-probabilities [B, W, 40]: token `best` (0, or [B, W]) has the given one, the others share the rest."""
    p = torch.as_tensor(confidences, dtype=torch.float64)
    best = torch.zeros_like(p, dtype=torch.int64) if best is None else torch.as_tensor(best)
    rest = ((1 - p) / (WORDS - 1))[..., None].expand(*p.shape, WORDS)
    return rest.scatter(-1, best[..., None], p[..., None]).log()


def view(confidences, masked=None, *, best=None, tokens=None, sampled=None, step=0, mask_budget=None, in_window=None,
         prompt_or_pad=None, first=0, seed=0):  # fmt: skip
    """A View of rows given as [B, W] lists; masked: everywhere unless told."""
    logp = table(confidences, best)
    b, w = logp.shape[:2]
    masked = torch.ones(b, w, dtype=torch.bool) if masked is None else torch.tensor(masked).bool()
    in_window = torch.ones_like(masked) if in_window is None else torch.tensor(in_window).bool()
    prompt_or_pad = torch.zeros_like(masked) if prompt_or_pad is None else torch.tensor(prompt_or_pad).bool()
    ours = masked & in_window & ~prompt_or_pad
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(b, w, generator=generator, dtype=torch.float64)
    tokens = torch.zeros(b, w, dtype=torch.int64) if tokens is None else torch.tensor(tokens)
    return StepView(
        logp=logp,
        tokens=torch.where(masked, WORDS, tokens),
        sampled=logp.argmax(-1) if sampled is None else torch.tensor(sampled),
        positions=first + torch.arange(w).expand(b, w),
        masked=ours,
        outside_window=masked & ~in_window & ~prompt_or_pad,
        prompt_or_pad=prompt_or_pad,
        in_window=in_window,
        step=torch.full((b,), step),
        mask_budget=ours.sum(1) if mask_budget is None else torch.tensor(mask_budget),
        prompt_end=torch.full((b,), first),
        uniform=lambda name: u,
        resample=lambda logp: logp.argmax(-1),
    )


def rows(choice):
    """The places that are committed, one list a row."""
    return [row.nonzero()[:, 0].tolist() for row in choice.commit]


def chosen(policy, seen):
    """What a policy commits at the first step that it sees, one list a row."""
    return rows(policy.select(seen, policy.init(len(seen.positions), int(seen.positions.max()) + 1))[0])
