"""The decoding loop of masked diffusion: a predictor's guesses are committed, some at a time, until no mask is left.

`walk` is the whole loop, `decode` runs it to its end; the parts that it is made of are in gen/text/contracts.py.
TextPipeline.generate (gen/text/pipeline.py) adds words to it.
"""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.spec import name_of
from gen.diffusion.noise import Noise, sample_seeds
from gen.text.contracts import Choice, Decoded, Decoding, KvPlan, Now, Progress, State, View, Window, between
from gen.text.predictor import Guided, Memory, Predictor, Span, Suppressed

__all__ = ["Decoded", "Progress", "decode", "lengths_of", "walk"]


def decode(
    f: Predictor,
    prompts: Sequence[Sequence[int] | Tensor],
    length: int | Sequence[int],
    how: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    every: int = 1,
) -> Decoded:
    """The text of `length` tokens after each prompt; see walk."""
    steps = walk(f, prompts, length, how, seed=seed, every=every)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.no_grad()
def walk(
    f: Predictor,
    prompts: Sequence[Sequence[int] | Tensor],
    length: int | Sequence[int],
    how: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    every: int = 1,
) -> Generator[Progress, None, Decoded]:
    """Yields every step; its return value is the Decoded.

    prompts: ids, of any lengths. length: of each text, at most. seed: a number, or one per row; row i depends on its
    seed alone. every: after so many steps the host asks which rows are done, and takes them out; in between they stand
    still. Raises UserError for ids outside the vocabulary, the mask among them, and for parts that do not fit;
    NonFinite if the logits are NaN.
    """
    how = how or Decoding()
    began = time.perf_counter()
    if not isinstance(every, int) or every < 1:
        raise UserError(f"decode: every = {every!r}; a whole number, at least 1")
    wrong = [token for token in how.suppress_tokens if not 0 <= token < f.vocab]
    if wrong or len({*how.suppress_tokens, f.mask}) >= f.vocab:
        what = f"suppress_tokens holds {wrong[0]}" if wrong else "suppress_tokens holds them all"
        raise UserError(f"decode: {what}; ids are 0 .. {f.vocab - 1}, and one has to be left")
    inner = Suppressed(f, how.suppress_tokens) if how.suppress_tokens else f
    rows = _Rows.begin(f, prompts, length, how, sample_seeds(seed, len(prompts)))
    out = rows.result()
    limit = 1000 + (64 + int(getattr(how.policy, "steps", 0) or 0)) * rows.wide  # `steps` are those of a window
    while rows.left:
        if out.steps > limit:
            raise RuntimeError(f"{name_of(type(how.policy))} does not end: {out.steps} steps for {rows.wide} tokens")
        yield rows.step(inner, how, out)
        out.steps += 1
        if out.steps % every == 0:
            rows.leave(f, how, out)
    out.seconds = time.perf_counter() - began
    return out


def lengths_of(length: int | Sequence[int], n: int) -> list[int]:
    """The lengths of n texts, from one number or one for each; UserError for anything else."""
    several = isinstance(length, Iterable) and getattr(length, "ndim", 1) > 0
    given: Any = length if several else [length] * n
    try:
        lengths = [operator.index(v) for v in given]
    except TypeError:
        raise UserError(f"decode: length = {length!r}; a whole number, or one for each prompt") from None
    if len(lengths) != n or any(v < 1 for v in lengths):
        raise UserError(f"decode: length = {length} for {n} prompts; one number or one each, at least 1")
    return lengths


@dataclass(eq=False)
class _Rows:
    """The rows that are not finished, [R, ...] each, and what belongs to the loop."""

    index: Tensor  # of the batch
    seeds: list[int]
    tokens: Tensor  # [R, N]
    start: Tensor
    end: Tensor
    window: Window
    held: Tensor
    done: Tensor
    why: Tensor  # 0, or 1 + the number of the stop that ended the row
    step_: Tensor
    owed: Tensor
    clean: Tensor
    changed: Tensor
    lost: Tensor  # whether logits are NaN
    nfe: Tensor
    computed: Tensor
    full: Tensor
    when: Tensor
    sure: Tensor
    logp: Tensor | None
    memory: Memory | None
    states: list[State]  # of the policy and the stops
    wide: int  # the longest text

    @classmethod
    def begin(
        cls, f: Predictor, prompts: Sequence[Any], length: int | Sequence[int], how: Decoding, seeds: list[int]
    ) -> _Rows:
        ids = [torch.as_tensor(p, dtype=torch.int64).flatten() for p in prompts]
        if not ids:
            raise UserError("decode: no prompts")
        lengths = lengths_of(length, len(ids))
        for i, p in enumerate(ids):
            wrong = (p < 0) | (p >= f.vocab) | (p == f.mask)
            if bool(wrong.any()):
                raise UserError(f"decode: prompt {i} holds {int(p[wrong][0])}; ids are 0 .. {f.vocab - 1} without the "
                                f"mask's, {f.mask}")  # fmt: skip
        if how.kv_plan is not None:
            how.kv_plan.check(f)
        device = getattr(f, "device", torch.device("cpu"))
        start = torch.tensor([len(p) for p in ids], device=device)
        end = start + torch.tensor(lengths, device=device)
        b, n = len(ids), int(end.max())
        tokens = torch.full((b, n), f.mask, device=device)
        for row, p in zip(tokens, ids, strict=True):
            row[: len(p)] = p.to(device)
        zero = torch.zeros_like(start)
        return cls(
            index=torch.arange(b, device=device),
            seeds=seeds,
            tokens=tokens,
            start=start,
            end=end,
            window=Window(zero - 1, zero - 1, zero - 1, zero - 1),
            held=zero > 0,
            done=zero > 0,
            why=zero,
            step_=zero,
            owed=zero,
            clean=zero,
            changed=zero == 0,
            lost=zero > 0,
            nfe=zero,
            computed=zero,
            full=zero,
            when=torch.full((b, n), -1, device=device),
            sure=torch.zeros(b, n, device=device),
            logp=None,
            memory=None if how.kv_plan is None else f.start(b, n),
            states=[how.policy.init(b, n), *(stop.init(b, n) for stop in how.stopping_rules)],
            wide=max(lengths),
        )

    @property
    def left(self) -> int:
        return len(self.index)

    def result(self) -> Decoded:
        """The result, before there is one."""
        fields = (self.tokens, self.start, self.end, self.when, self.sure, self.nfe, self.computed, self.full)
        tokens, *counts = (v.clone() for v in fields)
        start, end, when, sure, nfe, computed, full = counts
        return Decoded(tokens, start, end, when, sure, nfe, computed, full, ["full"] * self.left)

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self, f: Predictor, how: Decoding, out: Decoded) -> Progress:
        inside = between(self.tokens.shape[1], self.start, self.end)
        masked = (self.tokens == f.mask) & inside & ~self.done[:, None]
        fresh, entered = self.move(masked, how, f.block)
        at = self.asked(f, how)
        self.predict(f, how, at, masked, fresh, entered, out)
        view = self.view(f, how, at, masked, inside, out.steps)
        self.lost = (view.masked & view.logp[..., 0].isnan()).any(1)  # one of a place's are, or all
        choice, self.states[0] = how.policy.select(view, self.states[0])
        self.write(f, view, choice)
        self.held = torch.zeros_like(self.held) if choice.hold is None else choice.hold & ~self.done
        self.end_rows(f, how, view)
        self.step_ = self.step_ + 1
        guess = self.tokens.scatter(1, at, torch.where(view.masked | view.later, view.drawn, self.tokens.gather(1, at)))
        return Progress(self.index, self.tokens, torch.where(self.tokens == f.mask, guess, self.tokens))

    def move(self, masked: Tensor, how: Decoding, block: int | None) -> tuple[Tensor, Tensor]:
        """To the window of this step; whether it and its block are new, [R] each."""
        found, old = how.block_schedule.window(masked, self.start, self.end, block), self.window
        stay = self.held | ~masked.any(1)
        self.window = Window(
            *(torch.where(stay & (o >= 0), o, n) for o, n in zip(_four(old), _four(found), strict=True))
        )
        fresh, entered = self.window.lo != old.lo, self.window.block != old.block
        here = masked & between(masked.shape[1], self.window.lo, self.window.hi)
        self.step_ = torch.where(fresh, 0, self.step_)
        self.owed = torch.where(fresh, here.sum(1), self.owed)
        return fresh, entered

    def asked(self, f: Predictor, how: Decoding) -> Tensor:
        """The places [R, W] whose logits are wanted: the windows, or all that is generated."""
        lo, width = self.window.lo, how.block_schedule.width(self.wide, f.block)
        if how.policy.waits or any(stop.whole for stop in how.stopping_rules):
            lo, width = self.start, self.wide
        return (lo[:, None] + torch.arange(width, device=lo.device)).clamp(max=self.tokens.shape[1] - 1)

    def predict(
        self, f: Predictor, how: Decoding, at: Tensor, masked: Tensor, fresh: Tensor, entered: Tensor, out: Decoded
    ) -> None:
        """self.logp [R, W, V] by one forward of the rows that have changed."""
        each = int(getattr(f, "each", 1))
        if how.cfg_scale:
            f, each = Guided(f, how.cfg_scale, self.start), 2 * each
        if how.kv_plan is not None:
            span, first, last = self.span(f, how.kv_plan, masked, fresh, entered)
            logits = f(self.tokens, self.end, at, memory=self.memory, span=span)
            self.clean = torch.where(self.done | (f.block is None), self.clean, self.window.block)
        else:
            first, last, logits = torch.zeros_like(self.end), self.end, None
            if f.block is not None and at.shape[1] < self.wide:  # what comes after a block changes nothing in it
                last = self.window.until
            if not how.policy.waits or self.logp is None or bool(self.changed.all()):
                n = int(last.max()) if self.tokens.device.type == "cpu" else None  # others would wait for the number
                logits = f(self.tokens[:, :n], last, at)
            elif bool(self.changed.any()):
                some = self.changed.nonzero()[:, 0]
                part_ = Guided(f.inner, how.cfg_scale, self.start[some]) if isinstance(f, Guided) else f
                new = _logp(part_(self.tokens[some], self.end[some], at[some]), f.mask)
                self.logp = self.logp.index_copy(0, some, new)
        ran = self.changed & ~self.done if how.policy.waits else ~self.done
        if logits is not None:
            self.logp = _logp(logits, f.mask)
        out.forwards += int(logits is not None or bool(ran.any()))
        self.nfe = self.nfe + each * ran
        self.computed = self.computed + (last - first) * ran
        self.full = self.full + ((first == 0) & (last >= self.end) & ran)

    def span(
        self, f: Predictor, plan: KvPlan, masked: Tensor, fresh: Tensor, entered: Tensor
    ) -> tuple[Span, Tensor, Tensor]:
        now = Now(self.window, self.start, self.end, self.step_, fresh, entered, self.clean, masked)
        first, last = plan.span(now)
        first = torch.minimum(first, (self.window.lo - f.shift).clamp(min=0))
        n = self.tokens.shape[1]
        offsets = torch.arange(int((last - first).max()), device=first.device)
        places = first[:, None] + offsets
        upto = int(torch.maximum(last, self.window.until).max()) if f.block is not None else n
        return Span(torch.where(places < last[:, None], places, n), first, upto), first, last

    def view(self, f: Predictor, how: Decoding, at: Tensor, masked: Tensor, inside: Tensor, step: int) -> View:
        assert self.logp is not None
        lo, hi = self.window.lo[:, None], self.window.hi[:, None]
        real = at == at[:, :1] + torch.arange(at.shape[1], device=at.device)  # not clamped to the canvas's end
        here = real & (at >= lo) & (at < hi)
        free = masked.gather(1, at) & real
        noise = Noise(tuple(self.seeds))

        def uniform(name: str) -> Tensor:
            place = (at - self.start[:, None]).clamp(0, self.wide - 1)
            return noise.uniform(f"{name}.{step}", self.wide).to(at.device).gather(1, place)

        def draw(logp: Tensor) -> Tensor:
            return how.sampling.draw(logp, uniform("token") if how.sampling.temperature else None)

        return View(
            logp=self.logp,
            tokens=self.tokens.gather(1, at),
            drawn=draw(self.logp),
            at=at,
            masked=free & here,
            later=free & ~here,
            fixed=~(inside.gather(1, at) & real),
            here=here,
            step=self.step_,
            owed=self.owed,
            start=self.start,
            uniform=uniform,
            draw=draw,
        )

    def write(self, f: Predictor, view: View, choice: Choice) -> None:
        commit = choice.commit & view.masked
        written = ~(view.fixed | view.masked | view.later | self.done[:, None])  # a finished row is not touched again
        wrote = commit if choice.edit is None else commit | (choice.edit & written)
        self.put(view, wrote, view.drawn if choice.tokens is None else choice.tokens)
        if choice.remask is not None:
            gone = choice.remask & written
            self.put(view, gone, torch.full_like(view.drawn, f.mask), forget=True)
            wrote = wrote | gone
        self.changed = wrote.any(1)

    def put(self, view: View, where: Tensor, tokens: Tensor, forget: bool = False) -> None:
        """Tokens where they are to go; places may repeat at a canvas's end, and then only the first of them counts."""
        n = self.tokens.shape[1]
        at = torch.where(where, view.at, n)
        p = view.logp.gather(-1, tokens[..., None])[..., 0].exp().float()
        when = -torch.ones_like(tokens) if forget else self.nfe[:, None].expand_as(tokens)

        def written(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, old[:, :1]], 1).scatter(1, at, new.to(old.dtype))[:, :n]

        self.tokens, self.when = written(self.tokens, tokens), written(self.when, when)
        self.sure = written(self.sure, torch.zeros_like(p) if forget else p)

    def end_rows(self, f: Predictor, how: Decoding, view: View) -> None:
        frozen = self.done
        # those that fill masks come first: a stop token that they write ends the text
        for k, stop in sorted(enumerate(how.stopping_rules), key=lambda pair: not pair[1].whole):
            verdict, self.states[1 + k] = stop.check(view, self.tokens, self.start, self.end, f, self.states[1 + k])
            if verdict.fill is not None:
                still = self.tokens.gather(1, view.at) == f.mask
                self.put(view, (view.masked | view.later) & verdict.fill[:, None] & still, view.best)
            new = verdict.done & ~self.done
            self.why, self.done = torch.where(new, 1 + k, self.why), self.done | verdict.done
            if verdict.end is not None:
                self.end = torch.where(frozen, self.end, torch.minimum(self.end, verdict.end))
        inside = between(self.tokens.shape[1], self.start, self.end)
        self.done = self.done | ~((self.tokens == f.mask) & inside).any(1) & ~self.held

    # -- leaving -------------------------------------------------------------------------------------------------------

    def leave(self, f: Predictor, how: Decoding, out: Decoded) -> None:
        """Takes the rows that are done out, with all that is theirs."""
        if bool(self.lost.any()):
            raise NonFinite(f"step {out.steps}: the logits of text {int(self.index[self.lost][0])} are NaN")
        done = self.done.nonzero()[:, 0]
        if not len(done):
            return
        where = self.index[done]
        n = self.tokens.shape[1]
        for old, new in zip((out.tokens, out.when, out.sure), (self.tokens, self.when, self.sure), strict=True):
            old[where, :n] = new[done]
        beyond = torch.arange(out.tokens.shape[1], device=where.device) >= self.end[done, None]
        out.tokens[where] = out.tokens[where].masked_fill(beyond, f.stops[0] if f.stops else f.mask)
        for name in ("end", "nfe", "computed", "full"):
            getattr(out, name)[where] = getattr(self, name)[done]
        for row, why in zip(where.tolist(), self.why[done].tolist(), strict=True):
            out.reasons[row] = name_of(type(how.stopping_rules[why - 1])) if why else "full"
        self.keep((~self.done).nonzero()[:, 0])

    def keep(self, rows: Tensor) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                setattr(self, f.name, value[rows])
        self.seeds = [self.seeds[i] for i in rows.tolist()]
        self.window = Window(*(v[rows] for v in _four(self.window)))
        self.memory = None if self.memory is None else self.memory.take(rows)
        self.states = [{key: value[rows] for key, value in state.items()} for state in self.states]


def _four(window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return window.lo, window.hi, window.block, window.until


def _logp(logits: Tensor, mask: int) -> Tensor:
    """Log-probabilities in float32 at least; the mask token has none."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    ids = torch.tensor([mask], device=logits.device)
    return wide.index_fill(-1, ids, -torch.inf).log_softmax(-1)
