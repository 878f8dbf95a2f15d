"""Passes over the vocabulary: normalising, the likeliest token, draws; a few positions at a time on a CPU.

With LLaDA's 126,464 tokens the logits of 128 positions are 65 MB. A CPU reads them from memory once and writes the
result once; all else is done while they lie in its cache. A GPU takes all positions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gen.text.host import host_reads_are_free
from gen.text.ties import TIE, grouped

__all__ = ["by_rows", "draw", "entropy", "largest", "likeliest", "log_probabilities", "without"]

CACHED = 2**20  # numbers at a time on a CPU: 4 MiB in float32
BLOCK = 128  # tokens whose maximum or sum stands for them, so that a search reads each number once
SMALL = 4096  # a vocabulary of so many tokens is not worth a search
CUT = 1e-5  # of all; if the tokens above it are few and hold the nucleus, no others are looked at
FINE = 44  # a float64 without its last 44 bits: sign, exponent and 8 bits, 256 bins to an octave
BINS = 1 << 13  # bins below that of 1.0, 32 octaves; the lowest has all that is smaller
LOWEST = (1023 << 8) - BINS  # those bits of its numbers


def by_rows(function: Callable[..., Tensor], logp: Tensor, *others: Tensor, doubles: bool = False) -> Tensor:
    """Return function(logp, *others), numbers [...], computed in cached parts.

    Args:
        function: of rows that do not depend on one another.
        logp: numbers [..., V].
        *others: one number for each row, [...].
        doubles: whether it computes in float64, of which half as many numbers are cached.
    """
    rows = _rows_at_a_time(logp, doubles)
    if logp.shape[:-1].numel() <= rows:
        return function(logp, *others)
    flat = [logp.flatten(0, -2), *(other.flatten() for other in others)]
    parts = [function(*part) for part in zip(*(value.split(rows) for value in flat), strict=True)]
    return torch.cat(parts).view(logp.shape[:-1])


def _rows_at_a_time(logp: Tensor, doubles: bool = False) -> int:
    cached = CACHED // 2 if doubles else CACHED
    return max(1, cached // logp.shape[-1]) if logp.device.type == "cpu" else max(1, logp.shape[:-1].numel())


def log_probabilities(logits: Tensor, suppressed: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the log-probabilities of tokens, float32 at least; -inf for suppressed ones. Without gradients.

    Args:
        logits: [..., V]; they stay as they are.
        suppressed: ids that are never predicted, int64.
        out: storage for the result, of its shape and dtype; None for new one.
    """
    dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    out = torch.empty(logits.shape, dtype=dtype, device=logits.device) if out is None else out
    rows, parts = _rows_at_a_time(logits), [(logits, out)]
    if logits.shape[:-1].numel() > rows:
        parts = [*zip(logits.flatten(0, -2).split(rows), out.flatten(0, -2).split(rows), strict=True)]
    for part, result in parts:
        filled = part.to(dtype, copy=True).index_fill_(-1, suppressed, -torch.inf)
        torch.log_softmax(filled, -1, out=result)
    return out


def likeliest(logp: Tensor, but: Tensor | None = None) -> Tensor:
    """Return the likeliest token, the lowest id among equals (gen.text.ties), int64 [...].

    Args:
        logp: log-probabilities [..., V].
        but: the likeliest but these, int64 [...]; None leaves out none.
    """
    return by_rows(_likeliest, logp) if but is None else by_rows(_likeliest, logp, but)


def _likeliest(logp: Tensor, but: Tensor | None = None) -> Tensor:
    if logp.shape[-1] <= SMALL:
        logp = logp if but is None else logp.scatter(-1, but[..., None], -torch.inf)
        return _first(logp >= logp.amax(-1, keepdim=True) - TIE)
    tops = _of_blocks(logp, Tensor.amax)
    if but is not None:
        mine = (but // BLOCK)[..., None]
        left = _block(logp, mine[..., 0])[1].masked_fill(_ids(logp, mine[..., 0]) == but[..., None], -torch.inf)
        tops = tops.scatter(-1, mine, left.amax(-1, keepdim=True))
    least = tops.amax(-1, keepdim=True) - TIE
    ids, values = _block(logp, _first(tops >= least))
    enough = values >= least if but is None else (values >= least) & (ids != but[..., None])
    return ids.gather(-1, _first(enough)[..., None])[..., 0]


def _first(true: Tensor) -> Tensor:
    """Return the first index that is True; 0 where none is."""
    return true.to(torch.uint8).argmax(-1)


def _of_blocks(value: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Return the maximum or sum of every BLOCK neighbours, the last ones perhaps fewer, [..., V / BLOCK]."""
    whole = value.shape[-1] // BLOCK * BLOCK
    parts = [reduce(value[..., :whole].unflatten(-1, (-1, BLOCK)), -1)]
    if whole < value.shape[-1]:
        parts.append(reduce(value[..., whole:], -1)[..., None])
    return torch.cat(parts, -1)


def _ids(value: Tensor, block: Tensor) -> Tensor:
    """Return the ids of a block, [..., BLOCK]; the last id stands for those beyond it."""
    ids = block[..., None] * BLOCK + torch.arange(BLOCK, device=value.device)
    return ids.clamp(max=value.shape[-1] - 1)


def _block(value: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of a block of each row and their values, [..., BLOCK] each."""
    ids = _ids(value, block)
    return ids, value.gather(-1, ids)


def largest(logp: Tensor, k: int) -> Tensor:
    """Return the k-th largest number of each row, [..., 1].

    Args:
        logp: numbers [..., V].
        k: at most V.
    """
    blocks = -(-logp.shape[-1] // BLOCK)
    if 4 * k < blocks:  # the k largest lie in the k blocks with the largest maxima
        chosen = _of_blocks(logp, Tensor.amax).topk(k, -1).indices
        ids = chosen[..., None] * BLOCK + torch.arange(BLOCK, device=logp.device)  # [..., k, BLOCK]
        ids = ids.flatten(-2)
        inside = ids < logp.shape[-1]
        logp = logp.gather(-1, ids.clamp(max=logp.shape[-1] - 1)).masked_fill(~inside, -torch.inf)
    return logp.topk(k, -1).values[..., -1:]


def entropy(logp: Tensor) -> Tensor:
    """Return -sum p log p in nats, [...].

    Args:
        logp: log-probabilities [..., V].
    """
    return by_rows(lambda logp: -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1), logp)


def draw(
    logp: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int | None, where: Tensor | None = None
) -> Tensor:
    """Return token ids [...], each the one at which the cumulative probability passes u, in float64.

    float32 would truncate the distribution (arXiv 2409.02908).

    Args:
        logp: log-probabilities [..., V].
        u: uniform numbers [...].
        temperature, top_p, top_k: as in gen.text.decoding.TokenSampling.
        where: Boolean [...], the rows that are needed, others may have any id; None for all.
    """

    def rows(logp: Tensor, u: Tensor) -> Tensor:
        z = logp.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        z.sub_(logp.amax(-1, keepdim=True))
        if temperature != 1:
            z.div_(temperature)
        if top_k is not None and top_k < z.shape[-1]:
            z = z.masked_fill_(z < largest(z, top_k) - TIE, -torch.inf)
        if top_p == 1:
            return _at(z.exp_(), u.to(z))
        if z.shape[-1] <= SMALL or z.device.type != "cpu":
            return _nucleus(z, u.to(z), top_p)
        return _searched_nucleus(z.flatten(0, -2), u.to(z).flatten(), top_p).view(u.shape)

    if where is None or not host_reads_are_free(logp) or where.all():
        return by_rows(rows, logp, u, doubles=True)
    tokens, flat, v = torch.zeros(u.shape, dtype=torch.int64), logp.flatten(0, -2), u.flatten()
    for part in where.flatten().nonzero()[:, 0].split(_rows_at_a_time(logp, True)):
        tokens.view(-1)[part] = rows(flat[part], v[part])
    return tokens


def _at(p: Tensor, u: Tensor) -> Tensor:
    """Return the id at which the cumulative sum of weights p [..., V] passes the share u [...] of it all."""
    if p.shape[-1] <= SMALL:
        sums = p.cumsum(-1)
        return _passed(p, sums, u * sums[..., -1])
    weights = _of_blocks(p, Tensor.sum)
    sums = weights.cumsum(-1)
    wanted = u * sums[..., -1]
    block = _passed(weights, sums, wanted)
    before = (sums - weights).gather(-1, block[..., None])[..., 0]
    ids, inside = _block(p, block)
    inside = torch.where(ids == block[..., None] * BLOCK + torch.arange(BLOCK, device=p.device), inside, 0)
    index = _passed(inside, inside.cumsum(-1), (wanted - before).clamp(min=0))
    return ids.gather(-1, index[..., None])[..., 0]


def _passed(weights: Tensor, sums: Tensor, wanted: Tensor) -> Tensor:
    """Return the first index whose cumulative sum exceeds a number; rounding leads to no weight of 0."""
    ids = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, ids, 0).amax(-1)
    return torch.minimum(torch.searchsorted(sums, wanted[..., None], right=True)[..., 0], last)


def _nucleus(z: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Draw from the fewest largest weights exp(z) that together hold top_p of all."""
    p = z.exp()
    return _at(_of_nucleus(z, p, (top_p - TIE) * p.sum(-1, keepdim=True))[0], u)


def _of_nucleus(z: Tensor, p: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights p, 0 outside the fewest largest whose sum reaches a number; and which are equals of its last.

    Args:
        z: logarithms of p, [..., V].
        p: weights, [..., V].
        wanted: the sum, [..., 1].

    Returns:
        The weights, [..., V]; all of them in descending order; Boolean of these: equal to the last of the nucleus.
    """
    index, group = grouped(z)
    ordered = p.gather(-1, index)
    inside = ordered.cumsum(-1) - ordered < wanted
    last = inside.sum(-1, keepdim=True) - 1
    equal = (group == group.gather(-1, last.clamp(min=0))) & (last >= 0)
    return torch.zeros_like(p).scatter_(-1, index, ordered.masked_fill(~inside, 0)), ordered, equal


def _searched_nucleus(z: Tensor, u: Tensor, top_p: float) -> Tensor:
    """Do the same for rows [R, V], of which only the tokens above a cut are sorted if these are few and hold it."""
    p = z.exp()
    whole = p.sum(-1, keepdim=True)
    wanted, cut = (top_p - TIE) * whole, CUT * whole
    above = p >= cut
    counts = above.sum(-1, keepdim=True)
    few = [_indices(row) if 0 < count <= SMALL else torch.tensor([0]) for row, count in zip(above, counts, strict=True)]
    ids = pad_sequence(few, batch_first=True)  # [R, K]
    outside = torch.arange(ids.shape[-1]) >= counts
    weights = p.gather(-1, ids).masked_fill_(outside, 0)
    kept, ordered, equal = _of_nucleus(z.gather(-1, ids).masked_fill_(outside, -torch.inf), weights, wanted)
    least = ordered.masked_fill(~equal, torch.inf).amin(-1, keepdim=True)  # else an equal might lie below the cut
    known = (counts <= SMALL) & (weights.sum(-1, keepdim=True) > wanted) & (least > cut * (1 + 2 * TIE))
    tokens = ids.gather(-1, _at(kept, u)[:, None])[:, 0]
    for i in (~known[:, 0]).nonzero()[:, 0].tolist():
        tokens[i] = _flat_nucleus(z[i], p[i], u[i], wanted[i])
    return tokens


def _indices(true: Tensor) -> Tensor:
    """Return where a row [V] on the CPU is True; NumPy takes a sixth of PyTorch's time."""
    return torch.from_numpy(np.flatnonzero(true.numpy()))


def _flat_nucleus(z: Tensor, p: Tensor, u: Tensor, wanted: Tensor) -> Tensor:
    """Draw for one row [V], of which only the tokens about as likely as the nucleus's last are sorted.

    These come from a histogram of the leading bits of float64, which are ordered like the numbers.
    """
    bins = (p.view(torch.int64) >> FINE).sub_(LOWEST).clamp_(min=0)
    mass = p.new_zeros(BINS + 1).scatter_add_(0, bins, p)
    last = BINS - int((mass.flip(0).cumsum(0) < wanted).sum())
    low, high = (torch.tensor([last - 1, last + 2]) + LOWEST).bitwise_left_shift(FINE).view(torch.float64)
    low = low * (last > 1)
    above = p >= high
    near, kept = _indices((p >= low) ^ above), p * above  # a product takes a third of masked_fill's time
    inside, ordered, equal = _of_nucleus(z[near], p[near], wanted - kept.sum())
    equals = ordered[equal]
    if len(equals) and equals.min() > low * (1 + 2 * TIE) and equals.max() < high * (1 - 2 * TIE):
        kept[near] = inside
    else:  # an equal might lie beyond
        kept = _of_nucleus(z, p, wanted)[0]
    return _at(kept, u)


def without(logits: Tensor, tokens: Sequence[int], where: Tensor) -> Tensor:
    """Return logits that are -inf for some tokens at some positions.

    Args:
        logits: [B, W, V].
        tokens: ids.
        where: the positions, bool [B, W].
    """
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    return logits.index_copy(-1, index, logits[..., index].masked_fill(where[..., None], -torch.inf))
