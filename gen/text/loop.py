"""The decoding loop of masked diffusion: predictions are committed, some at a time, until no mask is left.

`decode_steps` is the whole loop and `decode` runs it to its end. Its state is three groups of tensors, one row per text
that is not finished: canvas, schedule and bookkeeping. TextPipeline.generate (gen/text/pipeline.py) adds strings to it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gen.config.errors import NonFinite
from gen.config.fields import check_arguments
from gen.config.spec import name_of
from gen.diffusion.noise import Noise, sample_seeds
from gen.text.contracts import CommitDecision, KvPlan, KvStep, Span, StepView, Window, positions_between
from gen.text.decoding import Decoded, Decoding, DecodingStep, step_counts
from gen.text.prompts import Prompts, lengths_of, prompt_ids
from gen.text.vocabulary import likeliest, log_probabilities

if TYPE_CHECKING:
    from gen.text.contracts import Predictor

__all__ = ["decode", "decode_steps"]

T = TypeVar("T")


@check_arguments(sync_every="[1, inf)")
def decode(
    predictor: Predictor,
    prompts: Prompts,
    length: int | Sequence[int],
    decoding: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    sync_every: int = 1,
) -> Decoded:
    """Decode a text after each prompt.

    Args:
        predictor, prompts, length, decoding, seed, sync_every: as in `decode_steps`.
    """
    steps = decode_steps(predictor, prompts, length, decoding, seed=seed, sync_every=sync_every)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@check_arguments(sync_every="[1, inf)")
@torch.no_grad()
def decode_steps(
    predictor: Predictor,
    prompts: Prompts,
    length: int | Sequence[int],
    decoding: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    sync_every: int = 1,
) -> Generator[DecodingStep, None, Decoded]:
    """Decode a text after each prompt, yielding after every step; the generator's return value is the result.

    Args:
        predictor: a network or an exact joint distribution.
        prompts: ids of each prompt, of any lengths.
        length: tokens of a text, at most; one number, or one for each.
        decoding: None for Decoding().
        seed: a number, or one for each text; text i depends on its prompt and its seed alone.
        sync_every: after so many steps the host asks which texts are finished, and takes them out of the batch; until
            then they are computed but do not change.

    Raises:
        UserError: for ids outside the vocabulary, the mask's among them, and for parts that do not fit.
        NonFinite: if logits are NaN.
    """
    decoding = Decoding() if decoding is None else decoding
    began = time.perf_counter()
    ids = prompt_ids(predictor, prompts, decoding)
    loop = _Loop(predictor, ids, length, decoding, sample_seeds(seed, len(ids)))
    out = loop.out
    limit = 1000 + (64 + step_counts(decoding.policy)) * loop.longest
    while len(loop.book.index):
        if out.steps > limit:
            policy = name_of(type(decoding.policy))
            raise RuntimeError(f"{policy} does not end: {out.steps} steps for {loop.longest} tokens")
        yield loop.step()
        out.steps += 1
        if out.steps % sync_every == 0:
            loop.retire()
    out.seconds = time.perf_counter() - began
    return out


# -- the loop's state: R texts that are not finished, on canvases of N tokens; no two tensors share storage ------------


@dataclass(eq=False)
class _Canvas:
    """Tokens, and what is known of each position."""

    tokens: Tensor  # [R, N]
    prompt_end: Tensor  # [R]
    text_end: Tensor  # [R]
    commit_step: Tensor  # [R, N]
    confidence: Tensor  # [R, N]

    @classmethod
    def begin(cls, prompts: Sequence[Tensor], lengths: Sequence[int], mask: int, device: torch.device) -> _Canvas:
        prompt_end = torch.tensor([len(p) for p in prompts], device=device)
        text_end = prompt_end + torch.tensor(lengths, device=device)
        tokens = torch.full((len(prompts), int(text_end.max())), mask, device=device)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt.to(device)
        confidence = torch.zeros(tokens.shape, device=device)
        return cls(tokens, prompt_end, text_end, torch.full_like(tokens, -1), confidence)

    def generated(self) -> Tensor:
        """Return the positions of the texts without their prompts, bool [R, N]."""
        return positions_between(self.tokens.shape[1], self.prompt_end, self.text_end)

    def write(self, positions: Tensor, where: Tensor, tokens: Tensor, step: Tensor, confidence: Tensor) -> None:
        """Write tokens [R, W] at some of the positions; of positions that repeat at the end only the first is one."""
        n = self.tokens.shape[1]
        slots = torch.where(where, positions, n)

        def written(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, old[:, :1]], 1).scatter(1, slots, new.to(old.dtype))[:, :n]

        self.tokens, self.commit_step = written(self.tokens, tokens), written(self.commit_step, step)
        self.confidence = written(self.confidence, confidence)


@dataclass(eq=False)
class _Schedule:
    """Progress of each text through its windows, [R]."""

    window: Window
    step: Tensor  # steps in this window before this one
    mask_budget: Tensor  # masks in the window at its first step
    hold: Tensor  # whether a window is not left although it has no masks
    clean_until: Tensor  # see KvStep
    changed: Tensor  # whether the last step wrote anything

    @classmethod
    def begin(cls, rows: int, device: torch.device) -> _Schedule:
        step, mask_budget, hold, clean_until, changed = _zeros(5, rows, device)
        nowhere = Window(*(v - 1 for v in _zeros(4, rows, device)))
        return cls(nowhere, step, mask_budget, hold > 0, clean_until, changed == 0)


@dataclass(eq=False)
class _Bookkeeping:
    """Whose the rows are, what they have cost and how they ended, [R]."""

    index: Tensor  # in the batch
    seeds: list[int]
    nfe: Tensor
    nfe_full: Tensor
    computed: Tensor
    done: Tensor
    reason: Tensor  # 0, or 1 + the index of the stopping rule that ended the text
    has_nan: Tensor  # whether logits are NaN

    @classmethod
    def begin(cls, seeds: list[int], device: torch.device) -> _Bookkeeping:
        nfe, nfe_full, computed, done, reason, has_nan = _zeros(6, len(seeds), device)
        index = torch.arange(len(seeds), device=device)
        return cls(index, seeds, nfe, nfe_full, computed, done > 0, reason, has_nan > 0)


def _zeros(count: int, rows: int, device: torch.device) -> list[Tensor]:
    """Return so many tensors int64 [rows], each with storage of its own."""
    return [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(count)]


def _take(group: T, rows: Tensor) -> T:
    """Return some rows, int64, of a dataclass of tensors, lists and such dataclasses."""
    taken: dict[str, Any] = {}
    for f in dataclasses.fields(group):  # type: ignore[arg-type]
        value = getattr(group, f.name)
        if isinstance(value, list):
            taken[f.name] = [value[i] for i in rows.tolist()]
        else:
            taken[f.name] = value[rows] if isinstance(value, Tensor) else _take(value, rows)
    return type(group)(**taken)


class _Loop:
    """One run of the loop: the texts that are not finished, the policy's and the rules' states, and the result."""

    def __init__(
        self, predictor: Predictor, ids: list[Tensor], length: int | Sequence[int], decoding: Decoding, seeds: list[int]
    ):
        lengths = lengths_of(length, len(ids))
        if decoding.kv_plan is not None:
            decoding.kv_plan.check(predictor)
        device = getattr(predictor, "device", torch.device("cpu"))
        self.predictor, self.decoding = predictor, decoding
        self.mask, self.longest = predictor.mask_token_id, max(lengths)
        self.canvas = _Canvas.begin(ids, lengths, self.mask, device)
        self.schedule, self.book = _Schedule.begin(len(ids), device), _Bookkeeping.begin(seeds, device)
        b, n = self.canvas.tokens.shape
        self.kv_cache = None if decoding.kv_plan is None else predictor.init_cache(b, n)
        self.states = [decoding.policy.init(b, n), *(rule.init(b, n) for rule in decoding.stopping_rules)]
        self.logp: Tensor | None = None  # [R, W, V], as they were predicted last
        self.storage = torch.empty(0)  # of log-probabilities: fresh memory takes a CPU longer than what is done in it
        canvas, counts = (
            {f.name: getattr(group, f.name).clone() for f in dataclasses.fields(group) if f.name in _RESULTS}
            for group in (self.canvas, self.book)
        )
        self.out = Decoded(**canvas, **counts, reasons=["full"] * b)

    def step(self) -> DecodingStep:
        """Predict, commit, and end what is finished."""
        canvas, schedule, book = self.canvas, self.schedule, self.book
        generated = canvas.generated()
        masked = (canvas.tokens == self.mask) & generated & ~book.done[:, None]
        new_window, new_block = self.move(masked)
        positions = self.queried()
        logp = self.evaluate(positions, masked, new_window, new_block)
        view = self.view(logp, positions, masked, generated)
        book.has_nan = (view.masked & logp[..., 0].isnan()).any(1)  # of a position's logits one is NaN or all are
        decision, self.states[0] = self.decoding.policy.select(view, self.states[0])
        self.commit(view, decision)
        schedule.hold = torch.zeros_like(book.done) if decision.hold is None else decision.hold & ~book.done
        self.finish(view)
        schedule.step = schedule.step + 1
        proposed = torch.where(view.masked | view.outside_window, view.sampled, canvas.tokens.gather(1, positions))
        guess = canvas.tokens.scatter(1, positions, proposed)
        guess = torch.where(canvas.tokens == self.mask, guess, canvas.tokens)
        return DecodingStep(book.index, canvas.tokens, guess, canvas.text_end)

    def move(self, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Move to the windows of this step; return whether each window and its block are new, [R]."""
        canvas, schedule, old = self.canvas, self.schedule, self.schedule.window
        new = self.decoding.block_schedule.window(masked, canvas.prompt_end, canvas.text_end, self.predictor.block_size)
        stay = schedule.hold | ~masked.any(1)
        names = [f.name for f in dataclasses.fields(Window)]
        pairs = [(getattr(old, name), getattr(new, name)) for name in names]
        schedule.window = window = Window(*(torch.where(stay & (a >= 0), a, b) for a, b in pairs))
        new_window, new_block = window.start != old.start, window.block_start != old.block_start
        masks = (masked & positions_between(masked.shape[1], window.start, window.stop)).sum(1)
        schedule.step = torch.where(new_window, 0, schedule.step)
        schedule.mask_budget = torch.where(new_window, masks, schedule.mask_budget)
        return new_window, new_block

    def queried(self) -> Tensor:
        """Return the positions [R, W] whose logits are needed: the windows, or all that is generated."""
        decoding, start = self.decoding, self.schedule.window.start
        width = decoding.block_schedule.width(self.longest, self.predictor.block_size)
        if decoding.policy.may_skip or any(rule.whole_text for rule in decoding.stopping_rules):
            start, width = self.canvas.prompt_end, self.longest
        offsets = torch.arange(width, device=start.device)
        return (start[:, None] + offsets).clamp(max=self.canvas.tokens.shape[1] - 1)

    def evaluate(self, positions: Tensor, masked: Tensor, new_window: Tensor, new_block: Tensor) -> Tensor:
        """Return log-probabilities [R, W, V] by one forward of the rows that have changed."""
        canvas, schedule, book, block_size = self.canvas, self.schedule, self.book, self.predictor.block_size
        skips, plan = self.decoding.policy.may_skip, self.decoding.kv_plan
        first, last, called = torch.zeros_like(canvas.text_end), canvas.text_end, True
        if plan is not None:
            span, first, last = self.span(plan, masked, new_window, new_block)
            self.logp = self.predict(canvas.tokens, canvas.text_end, positions, kv_cache=self.kv_cache, span=span)
            keeps = book.done | (block_size is None)
            schedule.clean_until = torch.where(keeps, schedule.clean_until, schedule.window.block_start)
        else:
            if block_size is not None and positions.shape[1] < self.longest:
                last = schedule.window.block_stop  # what comes after a block changes nothing in it
            if not skips or self.logp is None or bool(schedule.changed.all()):
                n = int(last.max()) if last.device.type == "cpu" else None  # others would wait for the number
                self.logp = self.predict(canvas.tokens[:, :n], last, positions)
            else:
                called, rows = False, schedule.changed.nonzero()[:, 0]
                if len(rows):
                    some = self.predict(canvas.tokens[rows], canvas.text_end[rows], positions[rows], rows)
                    self.logp.index_copy_(0, rows, some)
        ran = schedule.changed & ~book.done if skips else ~book.done
        self.out.forwards += int(called or bool(ran.any()))
        book.nfe = book.nfe + (2 if self.decoding.cfg_scale else 1) * ran
        book.computed = book.computed + (last - first) * ran
        book.nfe_full = book.nfe_full + ((first == 0) & (last >= canvas.text_end) & ran)
        return self.logp

    def predict(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, rows: Tensor | None = None, **cached: Any
    ) -> Tensor:
        """Return log-probabilities [R, W, V] of some rows, float32 at least; -inf for the mask and suppressed tokens.

        Those of all rows, `rows` None, have the storage of the last ones.

        Under classifier-free guidance logits are u + (cfg_scale + 1) (c - u), u those with the prompt masked (LLaDA).
        """
        f, scale, prompt_end = self.predictor, self.decoding.cfg_scale, self.canvas.prompt_end
        if scale:
            prompt_end = prompt_end if rows is None else prompt_end[rows]
            prompt = torch.arange(tokens.shape[1], device=tokens.device) < prompt_end[:, None]
            both = (torch.cat([v, v]) for v in (lengths, positions))
            c, u = f(torch.cat([tokens, tokens.masked_fill(prompt, self.mask)]), *both).chunk(2)
            logits = torch.where(c == u, c, u + (scale + 1) * (c - u))  # -inf - -inf is no number
        else:
            logits = f(tokens, lengths, positions, **cached)
        suppressed = torch.tensor([self.mask, *self.decoding.suppress_tokens], device=logits.device)
        if rows is not None:
            return log_probabilities(logits, suppressed)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if self.storage.numel() < logits.numel() or self.storage.dtype != dtype:
            self.storage = torch.empty(logits.numel(), dtype=dtype, device=logits.device)
        return log_probabilities(logits, suppressed, self.storage[: logits.numel()].view(logits.shape))

    def span(self, plan: KvPlan, masked: Tensor, new_window: Tensor, new_block: Tensor) -> tuple[Span, Tensor, Tensor]:
        """Return what a step with a KV cache computes, and the bounds of it, [R] each."""
        canvas, schedule, n = self.canvas, self.schedule, self.canvas.tokens.shape[1]
        window, block_size = schedule.window, self.predictor.block_size
        step = KvStep(
            window, canvas.prompt_end, canvas.text_end, schedule.step, new_window, new_block, schedule.clean_until,
            masked,
        )  # fmt: skip
        first, last = plan.span(step)
        first = torch.minimum(first, (window.start - self.predictor.shift).clamp(min=0))
        positions = first[:, None] + torch.arange(int((last - first).max()), device=first.device)
        stop = n if block_size is None else int(torch.maximum(last, window.block_stop).max())
        return Span(torch.where(positions < last[:, None], positions, n), first, stop), first, last

    def view(self, logp: Tensor, positions: Tensor, masked: Tensor, generated: Tensor) -> StepView:
        canvas, window, sampling = self.canvas, self.schedule.window, self.decoding.sampling
        offsets = torch.arange(positions.shape[1], device=positions.device)
        on_canvas = positions == positions[:, :1] + offsets  # not clamped to the canvas's end
        in_window = on_canvas & (positions >= window.start[:, None]) & (positions < window.stop[:, None])
        open_ = masked.gather(1, positions) & on_canvas
        noise, step = Noise(tuple(self.book.seeds)), self.out.steps

        def uniform(name: str) -> Tensor:
            column = (positions - canvas.prompt_end[:, None]).clamp(0, self.longest - 1)
            return noise.uniform(f"{name}.{step}", self.longest).to(positions.device).gather(1, column)

        tokens = canvas.tokens.gather(1, positions)

        def resample(logp: Tensor) -> Tensor:
            if sampling.temperature == 0:
                return likeliest(logp)
            needed = open_ | self.decoding.policy.edits
            return torch.where(needed, sampling.draw(logp, uniform("token"), needed), tokens)

        view = StepView(
            logp=logp,
            tokens=tokens,
            sampled=resample(logp),
            positions=positions,
            masked=open_ & in_window,
            outside_window=open_ & ~in_window,
            prompt_or_pad=~(generated.gather(1, positions) & on_canvas),
            in_window=in_window,
            step=self.schedule.step,
            mask_budget=self.schedule.mask_budget,
            prompt_end=canvas.prompt_end,
            uniform=uniform,
            resample=resample,
        )
        if sampling.temperature == 0:
            view.top_token = view.sampled  # which are the same then
        return view

    def commit(self, view: StepView, decision: CommitDecision) -> None:
        """Write what the policy has decided; a finished text is not touched again."""
        committed = ~(view.prompt_or_pad | view.masked | view.outside_window | self.book.done[:, None])
        wrote = decision.commit & view.masked
        if decision.edit is not None:
            wrote = wrote | (decision.edit & committed)
        self.write(view, wrote, view.sampled if decision.tokens is None else decision.tokens)
        if decision.remask is not None:
            remask = decision.remask & committed
            never = torch.full_like(view.sampled, -1)
            self.canvas.write(view.positions, remask, torch.full_like(never, self.mask), never, torch.zeros_like(never))
            wrote = wrote | remask
        self.schedule.changed = wrote.any(1)

    def write(self, view: StepView, where: Tensor, tokens: Tensor) -> None:
        """Write tokens [R, W] with the evaluation that wrote them and the probability they had."""
        confidence = view.logp.gather(-1, tokens[..., None])[..., 0].exp().float()
        self.canvas.write(view.positions, where, tokens, self.book.nfe[:, None].expand_as(tokens), confidence)

    def finish(self, view: StepView) -> None:
        """Apply the stopping rules; a text without masks is finished too."""
        canvas, book, before = self.canvas, self.book, self.book.done
        # rules that fill masks come first: an end-of-text token that they write ends the text
        rules = sorted(enumerate(self.decoding.stopping_rules, 1), key=lambda pair: not pair[1].whole_text)
        for k, rule in rules:
            decision, self.states[k] = rule.check(view, canvas.tokens, canvas.text_end, self.predictor, self.states[k])
            if decision.fill is not None:
                still = canvas.tokens.gather(1, view.positions) == self.mask
                self.write(view, (view.masked | view.outside_window) & decision.fill[:, None] & still, view.top_token)
            new = decision.done & ~book.done
            book.reason, book.done = torch.where(new, k, book.reason), book.done | decision.done
            if decision.text_end is not None:
                text_end = torch.minimum(canvas.text_end, decision.text_end)
                canvas.text_end = torch.where(before, canvas.text_end, text_end)
        masks = (canvas.tokens == self.mask) & canvas.generated()
        book.done = book.done | ~masks.any(1) & ~self.schedule.hold

    def retire(self) -> None:
        """Move the texts that are finished to the result; NonFinite for NaN logits."""
        canvas, book, out, f = self.canvas, self.book, self.out, self.predictor
        if bool(book.has_nan.any()):
            raise NonFinite(f"step {out.steps}: the logits of text {int(book.index[book.has_nan][0])} are NaN")
        done = book.done.nonzero()[:, 0]
        if not len(done):
            return
        rows = book.index[done]
        for group in (canvas, book):
            for name in _RESULTS & vars(group).keys():
                getattr(out, name)[rows] = getattr(group, name)[done]
        beyond = torch.arange(out.tokens.shape[1], device=rows.device) >= canvas.text_end[done, None]
        out.tokens[rows] = out.tokens[rows].masked_fill(beyond, (*f.eos_token_ids, self.mask)[0])
        for row, reason in zip(rows.tolist(), book.reason[done].tolist(), strict=True):
            out.reasons[row] = name_of(type(self.decoding.stopping_rules[reason - 1])) if reason else "full"
        keep = (~book.done).nonzero()[:, 0]
        self.canvas, self.schedule, self.book = _take(canvas, keep), _take(self.schedule, keep), _take(book, keep)
        self.logp = self.logp[keep] if self.logp is not None and self.decoding.policy.may_skip else None
        self.kv_cache = None if self.kv_cache is None else self.kv_cache.take(keep)
        self.states = [{key: value[keep] for key, value in state.items()} for state in self.states]


# What a finished text leaves in the result, by its name there and in the canvas or the bookkeeping.
_RESULTS = {
    "tokens", "prompt_end", "text_end", "commit_step", "confidence", "nfe", "nfe_full", "computed",
}  # fmt: skip
