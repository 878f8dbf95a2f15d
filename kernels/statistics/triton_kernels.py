# mypy: ignore-errors
"""Triton kernels of statistics of logits: each row is read once, in splits that are joined by a second, tiny kernel."""

import triton
import triton.language as tl

__all__ = ["backward", "join", "scan"]


@triton.jit
def _first(values, indices):
    """Return the largest value, and the lowest index that has it."""
    top = tl.max(values, 0)
    return top, tl.min(tl.where(values == top, indices, 2147483647), 0)


@triton.jit
def _two(top, best, after, second):
    """Return the two largest of lanes that hold two each."""
    first, first_index = _first(top, best)
    won = best == first_index
    next_value, next_index = _first(tl.where(won, after, top), tl.where(won, second, best))
    return first, first_index, next_value, next_index


@triton.jit
def scan(LOGITS, INDEX, NUMBER, stride, size, per_split, mask_token_id, BLOCK: tl.constexpr):
    """Scan one split of one row: INDEX int32 [rows, splits, 2] and NUMBER float32 [rows, splits, 4].

    NUMBER is top, next, sum and weighted; sum is of exp(x - top), weighted of (x - top) exp(x - top).
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    after = tl.full([BLOCK], float("-inf"), tl.float32)
    best = lane + 2147483647 - BLOCK  # a different one in each lane, and none that exists
    second = best
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    anchor = float("-inf")
    end = tl.minimum(size, (split + 1) * per_split)
    for low in range(split * per_split, end, BLOCK):
        index = low + lane
        x = tl.load(LOGITS + row * stride + index, mask=index < end, other=float("-inf")).to(tl.float32)
        x = tl.where(index == mask_token_id, float("-inf"), x)
        greater, between = x > top, x > after
        after = tl.where(greater, top, tl.where(between, x, after))
        second = tl.where(greater, best, tl.where(between, index, second))
        best = tl.where(greater, index, best)
        top = tl.where(greater, x, top)
        new = tl.maximum(anchor, tl.max(x, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        shift = tl.where(anchor == float("-inf"), 0.0, anchor - safe)
        away = x - safe
        share = tl.exp(away)
        weighted = (weighted + shift * total) * tl.exp(shift) + share * tl.where(share > 0.0, away, 0.0)
        total = total * tl.exp(shift) + share
        anchor = new
    first, first_index, next_value, next_index = _two(top, best, after, second)
    at = row * tl.num_programs(1) + split
    tl.store(INDEX + at * 2, first_index)
    tl.store(INDEX + at * 2 + 1, next_index)
    tl.store(NUMBER + at * 4, first)
    tl.store(NUMBER + at * 4 + 1, next_value)
    tl.store(NUMBER + at * 4 + 2, tl.sum(total, 0))
    tl.store(NUMBER + at * 4 + 3, tl.sum(weighted, 0))


@triton.jit
def join(INDEX, NUMBER, BEST, SECOND, TOP, NEXT, LSE, ENTROPY, LOG, splits, SPLITS: tl.constexpr):
    """Join the splits of one row: BEST, SECOND int64, the others float32, [rows] each."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SPLITS)
    keep = lane < splits
    at = row * splits + lane
    top = tl.load(NUMBER + at * 4, mask=keep, other=float("-inf"))
    after = tl.load(NUMBER + at * 4 + 1, mask=keep, other=float("-inf"))
    total = tl.load(NUMBER + at * 4 + 2, mask=keep, other=0.0)
    weighted = tl.load(NUMBER + at * 4 + 3, mask=keep, other=0.0)
    best = tl.load(INDEX + at * 2, mask=keep, other=2147483647)
    second = tl.load(INDEX + at * 2 + 1, mask=keep, other=2147483647)
    first, first_index, next_value, next_index = _two(top, best, after, second)
    safe = tl.where(first == float("-inf"), 0.0, first)
    shift = tl.where(top == float("-inf"), 0.0, top - safe)
    kept = tl.exp(shift)
    all_weighted = tl.sum((weighted + shift * total) * kept, 0)
    all_total = tl.sum(total * kept, 0)
    tl.store(BEST + row, tl.where(first == float("-inf"), 0, first_index).to(tl.int64))
    tl.store(SECOND + row, tl.where(next_value == float("-inf"), 0, next_index).to(tl.int64))
    tl.store(TOP + row, first)
    tl.store(NEXT + row, next_value)
    log = tl.log(all_total)
    tl.store(LOG + row, log)
    tl.store(LSE + row, first + log)
    tl.store(ENTROPY + row, tl.where(all_total > 0.0, log - all_weighted / all_total, 0.0))


@triton.jit
def backward(
    LOGITS, BEST, SECOND, TOP, NEXT, ENTROPY, LOG, DTOP, DNEXT, DLSE, DENTROPY, DLOGITS, stride, size, mask_token_id,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one block of one row of the logits' gradient, [rows, size] contiguous."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(LOGITS + row * stride + index, mask=index < size, other=float("-inf")).to(tl.float32)
    x = tl.where(index == mask_token_id, float("-inf"), x)
    logp = x - tl.load(TOP + row) - tl.load(LOG + row)
    share = tl.exp(logp)
    from_entropy = tl.load(DENTROPY + row) * (tl.where(share > 0.0, logp, 0.0) + tl.load(ENTROPY + row))
    d = share * (tl.load(DLSE + row) - from_entropy)
    d += tl.where(index == tl.load(BEST + row), tl.load(DTOP + row), 0.0)
    of_next = tl.where(tl.load(NEXT + row) > float("-inf"), tl.load(DNEXT + row), 0.0)
    d += tl.where(index == tl.load(SECOND + row), of_next, 0.0)
    tl.store(DLOGITS + row * size + index, d.to(DLOGITS.dtype.element_ty), mask=index < size)
