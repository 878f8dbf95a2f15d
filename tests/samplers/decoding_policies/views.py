"""Views made by hand: places whose likeliest tokens have given probabilities."""

from __future__ import annotations

import torch

from gen.text.contracts import View

WORDS = 40


def table(confidences, best=None):
    """Log-probabilities [B, W, 40]: token `best` (0, or [B, W]) has the given one, the others share the rest."""
    p = torch.as_tensor(confidences, dtype=torch.float64)
    best = torch.zeros_like(p, dtype=torch.int64) if best is None else torch.as_tensor(best)
    rest = ((1 - p) / (WORDS - 1))[..., None].expand(*p.shape, WORDS)
    return rest.scatter(-1, best[..., None], p[..., None]).log()


def view(confidences, masked=None, *, best=None, tokens=None, drawn=None, step=0, owed=None, here=None, fixed=None,
         first=0, seed=0):  # fmt: skip
    """A View of rows given as [B, W] lists; masked: everywhere unless told."""
    logp = table(confidences, best)
    b, w = logp.shape[:2]
    masked = torch.ones(b, w, dtype=torch.bool) if masked is None else torch.tensor(masked).bool()
    here = torch.ones_like(masked) if here is None else torch.tensor(here).bool()
    fixed = torch.zeros_like(masked) if fixed is None else torch.tensor(fixed).bool()
    ours = masked & here & ~fixed
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(b, w, generator=generator, dtype=torch.float64)
    tokens = torch.zeros(b, w, dtype=torch.int64) if tokens is None else torch.tensor(tokens)
    return View(
        logp=logp,
        tokens=torch.where(masked, WORDS, tokens),
        drawn=logp.argmax(-1) if drawn is None else torch.tensor(drawn),
        at=first + torch.arange(w).expand(b, w),
        masked=ours,
        later=masked & ~here & ~fixed,
        fixed=fixed,
        here=here,
        step=torch.full((b,), step),
        owed=ours.sum(1) if owed is None else torch.tensor(owed),
        start=torch.full((b,), first),
        uniform=lambda name: u,
        draw=lambda logp: logp.argmax(-1),
    )


def rows(choice):
    """The places that are committed, one list a row."""
    return [row.nonzero()[:, 0].tolist() for row in choice.commit]


def chosen(policy, seen):
    """What a policy commits at the first step that it sees, one list a row."""
    return rows(policy.select(seen, policy.init(len(seen.at), int(seen.at.max()) + 1))[0])
