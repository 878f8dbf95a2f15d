"""The decoding loop of masked diffusion: predictions are committed, some at a time, until no mask is left.

`DecodingLoop` is the loop over rows that come and go; `decode_steps` runs one batch of it and `decode` runs that to its
end. TextPipeline.generate (gen/text/pipeline.py) adds strings to it, DecodingQueue (gen/text/batching.py) requests.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.config.errors import NonFinite
from gen.config.fields import check_arguments
from gen.config.spec import name_of
from gen.diffusion.noise import Noise, sample_seeds
from gen.text.contracts import (
    CommitDecision,
    KvCache,
    KvPlan,
    KvStep,
    RowState,
    Span,
    StepView,
    Window,
    positions_between,
)
from gen.text.decoding import Decoded, Decoding, DecodingStep, step_counts
from gen.text.gaps import FIXED, Layout
from gen.text.host import host_reads_are_free, known_to_be_none
from gen.text.prompts import Lengths, Prompts, layouts
from gen.text.rows import Bookkeeping, Canvas, Schedule, join_rows, join_states, take_rows
from gen.text.vocabulary import likeliest, log_probabilities, without

if TYPE_CHECKING:
    from gen.text.contracts import Predictor

__all__ = ["DecodingLoop", "FinishedRows", "decode", "decode_steps"]


@check_arguments(sync_every="[1, inf)")
@torch.no_grad()
def decode(
    predictor: Predictor,
    prompts: Prompts,
    length: Lengths = None,
    decoding: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    sync_every: int = 1,
) -> Decoded:
    """Decode a text after each prompt, or fill a prompt's gaps.

    Args:
        predictor, prompts, length, decoding, seed, sync_every: as in `decode_steps`.
    """
    steps = _steps(predictor, prompts, length, decoding, seed, sync_every)
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
    length: Lengths = None,
    decoding: Decoding | None = None,
    *,
    seed: int | Sequence[int] = 0,
    sync_every: int = 1,
) -> Generator[DecodingStep, None, Decoded]:
    """Decode a text after each prompt, yielding after every step; the generator's return value is the result.

    Args:
        predictor: a network or an exact joint distribution.
        prompts: ids of each prompt, of any lengths, and gaps among them (gen.text.gaps.Gap); a prompt without gaps is
            followed by its text.
        length: tokens of a text, at most; one number, or one for each; None for prompts with gaps.
        decoding: None for Decoding().
        seed: a number, or one for each text; text i depends on its prompt and its seed alone.
        sync_every: after so many steps the host asks which texts are finished, and takes them out of the batch; until
            then they are computed but do not change.

    Raises:
        UserError: for ids outside the vocabulary, the mask's among them, and for parts that do not fit.
        NonFinite: if logits are NaN.
    """
    return (yield from _steps(predictor, prompts, length, decoding, seed, sync_every))


def _steps(
    predictor: Predictor,
    prompts: Prompts,
    length: Lengths,
    decoding: Decoding | None,
    seed: int | Sequence[int],
    sync_every: int,
) -> Generator[DecodingStep, None, Decoded]:
    """Do what `decode_steps` says; gradients are off around each step, by the caller."""
    decoding = Decoding() if decoding is None else decoding
    began = time.perf_counter()
    canvases = layouts(predictor, prompts, length, decoding)
    loop = DecodingLoop(predictor, decoding, sync_every)
    loop.add(canvases, [*range(len(canvases))], sample_seeds(seed, len(canvases)))
    out, limit = loop.blank(), loop.step_limit(loop.longest)
    while loop.book.index:
        if loop.steps > limit:
            policy = name_of(type(decoding.policy))
            raise RuntimeError(f"{policy} does not end: {loop.steps} steps for {loop.longest} tokens")
        yield loop.step()
        if loop.steps % sync_every == 0:
            finished, failed = loop.retire()
            if failed:
                raise NonFinite(f"step {loop.steps}: the logits of text {failed[0]} are NaN")
            out.fill(finished.index, finished.columns, finished.reasons)
    out.steps, out.forwards, out.seconds = loop.steps, loop.forwards, time.perf_counter() - began
    return out


# What a finished text leaves in the result, by its name there and in the canvas or the bookkeeping.
_RESULTS = {
    "tokens", "gap_start", "prompt_end", "text_end", "commit_step", "confidence", "nfe", "nfe_full", "computed",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """Texts that have left the loop.

    Attributes:
        index: their numbers.
        columns: what there is of them, by the fields of gen.text.decoding.Decoded, in the same order.
        reasons: what ended each.
    """

    index: list[int]
    columns: dict[str, Tensor]
    reasons: list[str]


class DecodingLoop:
    """The loop: texts that are not finished, and the policy's and the rules' states. Rows do not see one another.

    Args:
        predictor, decoding, sync_every: see `decode_steps`; UserError for a plan that does not fit the predictor.
    """

    canvas: Canvas
    schedule: Schedule
    book: Bookkeeping

    def __init__(self, predictor: Predictor, decoding: Decoding, sync_every: int = 1) -> None:
        if decoding.kv_plan is not None:
            decoding.kv_plan.check(predictor)
        self.predictor, self.decoding, self.mask = predictor, decoding, predictor.mask_token_id
        self.eos = (*predictor.eos_token_ids, self.mask)[0]  # pads
        # rules that fill masks come first: an end-of-text token that they write ends the text
        self.rules = sorted(enumerate(decoding.stopping_rules, 1), key=lambda pair: not pair[1].whole_text)
        self.whole_text = decoding.policy.may_skip or any(rule.whole_text for _, rule in self.rules)
        self.suppressed = torch.tensor([self.mask, *decoding.suppress_tokens])
        self.device: torch.device = getattr(predictor, "device", torch.device("cpu"))
        self.kv_cache: KvCache | None = None
        self.states: list[RowState] = []
        self.masks: Tensor | None = None  # [R, N + 1], as the last step left them
        self.logp: Tensor | None = None  # [R, W, V], as they were predicted last
        self.storage = torch.empty(0)  # of log-probabilities: fresh memory takes a CPU longer than what is done in it
        self.longest, self.exact = 0, False  # of the texts: their widest extent, and whether any has exact gaps
        self.sync_every, self.steps, self.forwards = sync_every, 0, 0
        self.prefill = 0  # positions up to the first window's end of texts that have joined since the last step

    @property
    def rows(self) -> int:
        """Number of texts that are not finished."""
        return len(self.book.index) if hasattr(self, "book") else 0

    @property
    def width(self) -> int:
        """Positions of a canvas."""
        return self.canvas.width

    def step_limit(self, extent: int) -> int:
        """Return more steps than a text of so many positions can take, if its policy keeps its contract."""
        return 1000 + (64 + step_counts(self.decoding.policy)) * extent

    def add(self, canvases: Sequence[Layout], index: list[int], seeds: list[int]) -> None:
        """Let texts join.

        Args:
            canvases: what is given of them.
            index: a number for each, by which it is known.
            seeds: randomness of each.
        """
        b, old = len(canvases), self.rows
        ends = [*(self.book.ends if old else ()), *(len(canvas.tokens) for canvas in canvases)]
        n, decoding = max(ends), self.decoding
        canvas = Canvas.begin(canvases, self.mask, self.device).resized(n, self.mask)
        schedule = Schedule.begin(b, self.device)
        book = Bookkeeping.begin(canvases, index, seeds, self.steps, self.device)
        states = [decoding.policy.init(b, n), *(rule.init(b, n) for rule in decoding.stopping_rules)]
        kv_cache = None if decoding.kv_plan is None else self.predictor.init_cache(b, n)
        if old:
            canvas = join_rows(self.canvas.resized(n, self.mask), canvas)
            schedule, book = join_rows(self.schedule, schedule), join_rows(self.book, book)
            states = [join_states(one, other) for one, other in zip(self.states, states, strict=True)]
            if self.kv_cache is not None and kv_cache is not None:
                kv_cache = self.kv_cache.resized(n).joined(kv_cache)
        self.canvas, self.schedule, self.book = canvas, schedule, book
        self.states, self.kv_cache, self.logp, self.masks = states, kv_cache, None, None
        size = self.predictor.block_size or n
        self.prefill = max(self.prefill, *((canvas.start // size + 1) * size for canvas in canvases))
        exact = any(bool(canvas.exact.any()) for canvas in canvases)
        self.longest, self.exact = max(book.extents), exact or (bool(old) and self.exact)

    def blank(self) -> Decoded:
        """Return a result that holds nothing yet, of all texts that are here."""
        return Decoded(**{k: v.clone() for k, v in self.columns().items()}, reasons=["full"] * self.rows)

    def columns(self) -> dict[str, Any]:
        """Return what there is of each text by the names of results."""
        groups = {**vars(self.canvas), **vars(self.book)}
        return {name: groups[name][..., : self.width] if groups[name].ndim > 1 else groups[name] for name in _RESULTS}

    def step(self) -> DecodingStep:
        """Predict, commit, and end what is finished."""
        canvas, schedule, book = self.canvas, self.schedule, self.book
        masks = canvas.masks(self.mask) if self.masks is None else self.masks
        masked = masks & ~book.done[:, None]
        new_window, new_block = self.move(masked)
        slots = self.queried()
        positions = slots.clamp(max=self.width - 1)
        logp = self.evaluate(positions, masked, new_window, new_block)
        view = self.view(logp, slots, positions, masked, new_window)
        nan = (view.masked & logp[..., 0].isnan()).any(1)  # of a position's logits one is NaN or all are
        book.has_nan = book.has_nan | nan
        decision, self.states[0] = self.decoding.policy.select(view, self.states[0])
        self.commit(view, decision)
        schedule.hold = torch.zeros_like(book.done) if decision.hold is None else decision.hold & ~book.done
        self.finish(view)
        self.steps += 1
        tokens, gap_start = canvas.tokens[:, :-1], canvas.gap_start[:, :-1]
        return DecodingStep(book.index, tokens, gap_start, canvas.text_end, view, self.mask)

    def move(self, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Move to the windows of this step; return whether each window and its block are new, [R]."""
        canvas, schedule, old = self.canvas, self.schedule, self.schedule.window
        new = self.decoding.block_schedule.window(masked, canvas.prompt_end, canvas.text_end, self.predictor.block_size)
        stay = schedule.hold | self.book.done
        pairs = zip(vars(old).values(), vars(new).values(), strict=True)
        schedule.window = window = Window(*(torch.where(stay, a, b) for a, b in pairs))
        new_window, new_block = window.start != old.start, window.block_start != old.block_start
        schedule.step = (schedule.step + 1).masked_fill(new_window, 0)
        return new_window, new_block

    def queried(self) -> Tensor:
        """Return the positions [R, W] whose logits are needed: the windows, or all that is generated; N beyond all."""
        decoding, start = self.decoding, self.schedule.window.start
        width = decoding.block_schedule.width(self.longest, self.predictor.block_size)
        if self.whole_text:
            start, width = self.canvas.prompt_end, self.longest
        return (start[:, None] + torch.arange(width, device=start.device)).clamp(max=self.width)

    def evaluate(self, positions: Tensor, masked: Tensor, new_window: Tensor, new_block: Tensor) -> Tensor:
        """Return log-probabilities [R, W, V] by one forward of the rows that have changed."""
        canvas, schedule, book, block_size = self.canvas, self.schedule, self.book, self.predictor.block_size
        skips, plan, tokens = self.decoding.policy.may_skip, self.decoding.kv_plan, canvas.tokens[:, :-1]
        size, called = canvas.text_end, True  # of what is computed of each row
        if plan is not None:
            span, size = self.span(plan, masked, new_window, new_block)
            self.logp = self.predict(tokens, canvas.text_end, positions, kv_cache=self.kv_cache, span=span)
            if block_size is not None:
                start = schedule.window.block_start
                schedule.clean_until = torch.where(book.done, schedule.clean_until, start)
        else:
            if block_size is not None and positions.shape[1] < self.longest:
                size = schedule.window.block_stop  # what comes after a block changes nothing in it
            changed = schedule.changed.tolist() if skips and self.logp is not None else [True]
            if self.logp is None or all(changed):
                n = int(size.max()) if host_reads_are_free(size) else max(book.ends)
                self.logp = self.predict(tokens[:, :n], size, positions)
            else:
                called = any(changed)
                if called:
                    rows = torch.tensor([i for i, new in enumerate(changed) if new], device=size.device)
                    some = self.predict(tokens[rows], canvas.text_end[rows], positions[rows], rows)
                    self.logp.index_copy_(0, rows, some)
        ran = schedule.changed & ~book.done if skips else ~book.done
        size = size * ran
        self.forwards += called
        book.nfe = torch.add(book.nfe, ran, alpha=2 if self.decoding.cfg_scale else 1)
        book.computed = book.computed + size
        book.nfe_full = book.nfe_full + (size >= canvas.text_end)
        return self.logp

    def predict(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, rows: Tensor | None = None, **cached: Any
    ) -> Tensor:
        """Return log-probabilities [R, W, V] of some rows, float32 at least; -inf for the mask and suppressed tokens.

        Those of all rows, `rows` None, have the storage of the last ones.

        Under classifier-free guidance logits are u + (cfg_scale + 1) (c - u), u those with the prompt masked (LLaDA).
        Of a prompt with gaps all that is fixed is masked.
        """
        f, scale, canvas = self.predictor, self.decoding.cfg_scale, self.canvas
        gap_start, exact = (v if rows is None else v[rows] for v in (canvas.gap_start, canvas.exact))
        if scale:
            prompt = gap_start[:, : tokens.shape[1]] == FIXED
            both = (torch.cat([v, v]) for v in (lengths, positions))
            c, u = f(torch.cat([tokens, tokens.masked_fill(prompt, self.mask)]), *both).chunk(2)
            logits = torch.where(c == u, c, u + (scale + 1) * (c - u))  # -inf - -inf is no number
        else:
            logits = f(tokens, lengths, positions, **cached)
        if self.exact:
            logits = without(logits, f.eos_token_ids, exact.gather(1, positions))
        suppressed = self.suppressed = self.suppressed.to(logits.device)
        if rows is not None:
            return log_probabilities(logits, suppressed)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if self.storage.numel() < logits.numel() or self.storage.dtype != dtype:
            self.storage = torch.empty(logits.numel(), dtype=dtype, device=logits.device)
        return log_probabilities(logits, suppressed, self.storage[: logits.numel()].view(logits.shape))

    def span(self, plan: KvPlan, masked: Tensor, new_window: Tensor, new_block: Tensor) -> tuple[Span, Tensor]:
        """Return what a step with a KV cache computes, and how many positions that is, [R]."""
        canvas, schedule, stop = self.canvas, self.schedule, self.width
        window, shift = schedule.window, self.predictor.shift
        step = KvStep(
            window, canvas.prompt_end, canvas.text_end, schedule.step, new_window, new_block, schedule.clean_until,
            masked,
        )  # fmt: skip
        first, last = plan.span(step)
        if shift:
            first = torch.minimum(first, (window.start - shift).clamp(min=0))
        size = last - first
        bounded = self.sync_every > 1 and plan.within_blocks and not host_reads_are_free(size)
        block_size, widest = self.predictor.block_size, self.decoding.block_schedule.width
        if block_size is None:
            width = int(size.amax())  # a GPU waits here, at every step
        elif bounded and widest(self.longest, block_size) <= block_size:
            width, self.prefill = min(max(self.prefill, 2 * block_size), stop), 0  # the last block clean, and the next
        else:
            width, stop = torch.stack([size, torch.maximum(last, window.block_stop)]).amax(1).tolist()  # or here
        positions = first[:, None] + torch.arange(width, device=first.device)
        return Span(torch.where(positions < last[:, None], positions, self.width), first, stop), size

    def view(self, logp: Tensor, slots: Tensor, positions: Tensor, masked: Tensor, new_window: Tensor) -> StepView:
        """Return the policy's inputs at this step; slots: the positions, N instead of those beyond the canvas."""
        canvas, window, schedule = self.canvas, self.schedule.window, self.schedule
        sampling = self.decoding.sampling
        in_window = slots < window.stop[:, None]
        if self.whole_text:  # else the queried positions begin with the window
            in_window = in_window & (slots >= window.start[:, None])
        open_ = masked.gather(1, slots)
        active = open_ & in_window
        schedule.mask_budget = torch.where(new_window, active.sum(1), schedule.mask_budget)
        ages = [self.steps - born for born in self.book.born]

        def uniform(name: str) -> Tensor:
            column = (positions - canvas.prompt_end[:, None]).clamp(0, self.longest - 1)
            drawn = (
                Noise((seed,)).uniform(f"{name}.{age}", self.longest)
                for seed, age in zip(self.book.seeds, ages, strict=True)
            )
            numbers = torch.cat([*drawn])
            if positions.is_cuda:  # without waiting for the copy
                numbers = numbers.pin_memory()
            return numbers.to(positions.device, non_blocking=True).gather(1, column)

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
            masked=active,
            outside_window=open_ ^ active,
            prompt_or_pad=canvas.gap_start.gather(1, slots) < 0,
            in_window=in_window,
            step=schedule.step,
            mask_budget=schedule.mask_budget,
            prompt_end=canvas.prompt_end,
            uniform=uniform,
            resample=resample,
        )
        if sampling.temperature == 0:
            view.top_token = view.sampled  # which are the same then
        return view

    def commit(self, view: StepView, decision: CommitDecision) -> None:
        """Write what the policy has decided; a finished text is not touched again."""
        wrote, edit, remask = decision.commit & view.masked, decision.edit, decision.remask
        if edit is not None or remask is not None:
            committed = ~(view.prompt_or_pad | view.masked | view.outside_window | self.book.done[:, None])
            wrote = wrote if edit is None else wrote | (edit & committed)
            remask = None if remask is None else remask & committed
        self.write(view, wrote, view.sampled if decision.tokens is None else decision.tokens)
        if remask is not None:
            never = torch.full_like(view.sampled, -1)
            nothing = torch.zeros_like(never, dtype=self.canvas.confidence.dtype)
            self.canvas.write(view.positions, remask, torch.full_like(never, self.mask), never, nothing)
            wrote = wrote | remask
        if self.decoding.policy.may_skip:
            self.schedule.changed = wrote.any(1)

    def write(self, view: StepView, where: Tensor, tokens: Tensor) -> None:
        """Write tokens [R, W] with the evaluation that wrote them and the probability they had."""
        confidence = view.probability(tokens).float()
        self.canvas.write(view.positions, where, tokens, self.book.nfe[:, None].expand_as(tokens), confidence)

    def finish(self, view: StepView) -> None:
        """Apply the stopping rules; a text without masks is finished too."""
        canvas, book, before = self.canvas, self.book, self.book.done
        for k, rule in self.rules:
            tokens, gap_start = canvas.tokens[:, :-1], canvas.gap_start[:, :-1]
            decision, self.states[k] = rule.check(view, tokens, gap_start, self.predictor, self.states[k])
            if decision.fill is not None:
                still = tokens.gather(1, view.positions) == self.mask
                self.write(view, (view.masked | view.outside_window) & decision.fill[:, None] & still, view.top_token)
            new = decision.done & ~book.done
            book.reason, book.done = torch.where(new, k, book.reason), book.done | decision.done
            if decision.ends is not None and not known_to_be_none(decision.ends):
                dropped = canvas.end_gaps(decision.ends & ~before[:, None], self.eos)
                self.schedule.changed = self.schedule.changed | dropped
        self.masks = canvas.masks(self.mask)
        book.done = book.done | ~(self.masks.any(1) | self.schedule.hold)

    def retire(self) -> tuple[FinishedRows, list[int]]:
        """Take out the texts that are finished; return them, and the numbers of those whose logits are NaN."""
        canvas, book = self.canvas, self.book
        failed, done = torch.stack([book.has_nan, book.done]).tolist()  # the one look of the host at the device
        nan = [number for number, is_nan in zip(book.index, failed, strict=True) if is_nan]
        rows = [i for i, finished in enumerate(done) if finished]
        if not rows:
            return FinishedRows([], {}, []), nan
        index = torch.tensor(rows, dtype=torch.int64, device=canvas.tokens.device)
        columns = {name: column[index] for name, column in self.columns().items()}
        beyond = ~positions_between(self.width, torch.zeros_like(index), columns["text_end"])
        columns["tokens"] = columns["tokens"].masked_fill(beyond, self.eos)
        reasons = ["full", *(name_of(type(rule)) for rule in self.decoding.stopping_rules)]
        ended = [reasons[k] for k in book.reason[index].tolist()]
        finished = FinishedRows([book.index[i] for i in rows], columns, ended)
        self.keep([i for i, is_done in enumerate(done) if not is_done])
        return finished, nan

    def keep(self, rows: list[int]) -> None:
        """Go on with some rows only."""
        self.book = take_rows(self.book, rows)
        if not rows:  # nobody reads the rest
            return
        self.canvas, self.schedule = take_rows(self.canvas, rows), take_rows(self.schedule, rows)
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.logp = self.logp[index] if self.logp is not None and self.decoding.policy.may_skip else None
        self.masks, self.kv_cache = None, None if self.kv_cache is None else self.kv_cache.take(index)
        self.states = [{key: value[index.to(value.device)] for key, value in s.items()} for s in self.states]
