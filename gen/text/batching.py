"""Continuous batching: requests join and leave the decoding loop while it runs; each text is what it is alone."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.config.fields import check_range
from gen.config.spec import name_of
from gen.diffusion.noise import sample_seeds
from gen.text.decoding import Decoded, Decoding
from gen.text.detokenize import BROKEN
from gen.text.gaps import Layout, text_positions
from gen.text.loop import DecodingLoop, FinishedRows
from gen.text.pipeline import GeneratedTexts, Prompt, TextPipeline
from gen.text.prompts import layouts

__all__ = ["DecodingQueue", "DecodingRequest", "QueueFull"]


class QueueFull(UserError):
    """More requests wait than a queue keeps."""


@dataclass(eq=False)
class DecodingRequest:
    """A text that was asked for: the handle of `DecodingQueue.submit`.

    Attributes:
        number: counts the requests of a queue.
        layout: the canvas before decoding.
        decoding: how it is decoded.
        seed: randomness of this text.
        stream: whether `text` follows the decoding.
        state: "waiting", "running", then "done", "cancelled" or "failed".
        text: with `stream`, what of the text is final: up to its first mask, and where tokens may still be revised up
            to the current block; whole characters.
        error: why it failed.
        written: the result once it is done.
        began: when it joined the loop, by time.perf_counter.
    """

    number: int
    layout: Layout
    decoding: Decoding
    seed: int
    stream: bool = False
    state: str = "waiting"
    text: str = ""
    error: Exception | None = None
    written: GeneratedTexts | None = field(default=None, repr=False)
    began: float = 0.0

    @property
    def finished(self) -> bool:
        """True once the request is done, cancelled or failed."""
        return self.state not in ("waiting", "running")

    def result(self) -> GeneratedTexts:
        """Return what was written; raises the error of a request that failed, UserError for one without a result."""
        if self.error is not None:
            raise self.error
        if self.written is None:
            raise UserError(f"request {self.number} is {self.state} and has no text")
        return self.written


class DecodingQueue:
    """Requests that are decoded together. Not for several threads at once.

    Requests with the same settings share one loop; those with others run in turns. First come, first served.

    Args:
        model: the pipeline.
        max_rows: texts that are decoded at a time, at most.
        max_tokens: positions of their canvases, padding included, at most, which bounds the memory; None for max_rows
            of the model's longest canvas.
        max_waiting: requests that wait for their turn, at most, besides as many as may run.
        sync_every: see gen.text.loop.decode_steps.
    """

    def __init__(
        self,
        model: TextPipeline,
        *,
        max_rows: int = 16,
        max_tokens: int | None = None,
        max_waiting: int = 1024,
        sync_every: int = 1,
    ) -> None:
        limits = {"max_rows": max_rows, "max_waiting": max_waiting, "sync_every": sync_every}
        for name, value in (limits if max_tokens is None else {**limits, "max_tokens": max_tokens}).items():
            check_range(value, "[1, inf)", f"DecodingQueue: {name}")
        self.model, self.max_rows, self.max_tokens = model, max_rows, max_tokens
        self.max_waiting, self.sync_every = max_waiting, sync_every
        self.waiting = deque[DecodingRequest]()
        self.running = dict[int, DecodingRequest]()
        self.loops = list[DecodingLoop]()
        self.count = 0

    def __len__(self) -> int:
        """Return the number of requests that are not finished."""
        return len(self.waiting) + len(self.running)

    def submit(
        self, prompt: Prompt, length: int | None = None, *, seed: int = 0, stream: bool = False, **changes: Any
    ) -> DecodingRequest:
        """Ask for a text; its text is that of `model.generate` with the same arguments.

        Args:
            prompt, length, seed, changes: see TextPipeline.generate.
            stream: whether the request's `text` follows the decoding.

        Raises:
            QueueFull: if too many requests wait.
            UserError: for what `generate` refuses, and for a text longer than all that may be decoded at a time.
        """
        model, ids = self.model, self.model.ids([prompt])
        decoding = model.plan(**changes)
        (layout,) = layouts(model.net, ids, model.lengths(ids, length), decoding)
        if self.max_tokens is not None and len(layout.tokens) > self.max_tokens:
            raise UserError(f"a text of {len(layout.tokens)} tokens; this queue decodes at most {self.max_tokens}")
        if len(self) >= self.max_rows + self.max_waiting:
            raise QueueFull(f"{len(self)} requests run or wait already, and no more may")
        if decoding.kv_plan is not None:
            decoding.kv_plan.check(model.net)
        request = DecodingRequest(self.count, layout, decoding, sample_seeds(seed, 1)[0], stream)
        self.count += 1
        self.waiting.append(request)
        return request

    def cancel(self, request: DecodingRequest) -> None:
        """Drop a request, at once; nothing happens to one that is finished."""
        if request.state == "waiting":
            self.waiting.remove(request)
        elif request.state == "running":
            self._drop(request)
        else:
            return
        request.state = "cancelled"

    @torch.no_grad()
    def step(self) -> list[DecodingRequest]:
        """Let requests join, decode one step of all that run, and return those that have finished in it."""
        finished = self._admit()
        for loop in [loop for loop in self.loops if loop.rows]:
            try:
                finished += self._step(loop)
            except Exception as error:  # of the predictor or a part: its requests fail, the others go on
                self.loops.remove(loop)
                finished += [self._fail(self.running[number], error) for number in loop.book.index]
        self.loops = [loop for loop in self.loops if loop.rows]
        return finished

    def run(self) -> None:
        """Decode until no request is left."""
        while len(self):
            self.step()

    def _admit(self) -> list[DecodingRequest]:
        """Let the requests that wait join, in their order, as long as there is room; return those that failed."""
        failed = list[DecodingRequest]()
        while self.waiting and len(self.running) < self.max_rows:
            request = self.waiting[0]
            need, used = len(request.layout.tokens), 0
            own = next((loop for loop in self.loops if loop.decoding == request.decoding), None)
            for loop in self.loops:
                used += (loop.rows + 1) * max([*loop.book.ends, need]) if loop is own else loop.rows * loop.width
            used += need if own is None else 0
            if self.max_tokens is not None and used > self.max_tokens and self.running:
                break
            request.state, request.began = "running", time.perf_counter()
            self.running[request.number] = self.waiting.popleft()
            try:
                joined = own or DecodingLoop(self.model.net, request.decoding, self.sync_every)
                joined.add([request.layout], [request.number], [request.seed])
                self.loops += [joined] if own is None else []
            except Exception as error:  # such as no memory
                failed.append(self._fail(request, error))
        return failed

    def _step(self, loop: DecodingLoop) -> list[DecodingRequest]:
        """Decode one step of a loop; return the requests that have finished."""
        seen = loop.step()
        if loop.steps % self.sync_every:
            return []
        failures = dict[int, Exception]()
        for row, number in enumerate(loop.book.index):
            if self.running[number].stream:
                try:
                    self._follow(self.running[number], loop, row, seen.tokens[row])
                except Exception as error:  # of the tokenizer
                    failures[number] = error
        ages = {n: loop.steps - born for n, born in zip(loop.book.index, loop.book.born, strict=True)}
        endless = [
            number
            for number, extent in zip(loop.book.index, loop.book.extents, strict=True)
            if ages[number] > loop.step_limit(extent)
        ]
        rows, nan = loop.retire()
        failures |= {number: NonFinite("the logits of this text are NaN") for number in nan}
        finished = list[DecodingRequest]()
        for k, number in enumerate(rows.index):
            if number not in failures:
                try:
                    finished.append(self._finish(rows, k, ages[number]))
                except Exception as error:  # of the tokenizer; the row has left the loop, so no other request fails
                    failures[number] = error
        for number in endless:
            if number in self.running and number not in failures:
                failures[number] = RuntimeError(f"{name_of(type(loop.decoding.policy))} does not end")
        return finished + [self._fail(self.running[number], error) for number, error in failures.items()]

    def _follow(self, request: DecodingRequest, loop: DecodingLoop, row: int, tokens: Tensor) -> None:
        """Bring the text of a request up to date with what is final."""
        start, policy = request.layout.start, loop.decoding.policy
        stop, ids = int(loop.canvas.text_end[row]), tokens.tolist()
        if policy.edits or policy.order_depends_on_samples:  # tokens of the window may be written anew
            stop = min(stop, int(loop.schedule.window.block_start[row]))
        stop = next((k for k in range(start, stop) if ids[k] == self.model.net.mask_token_id), stop)
        gap_start = loop.canvas.gap_start[row, start:stop].tolist()
        kept = text_positions(ids[start:stop], gap_start, self.model.net.eos_token_ids)
        text = self.model.string([ids[start + k] for k in kept]).rstrip(BROKEN)
        request.text = text if text.startswith(request.text) else request.text

    def _finish(self, rows: FinishedRows, k: int, steps: int) -> DecodingRequest:
        """Write down a text that has left its loop."""
        request = self.running[rows.index[k]]
        width = len(request.layout.tokens)
        columns = {name: v[k : k + 1] if v.ndim == 1 else v[k : k + 1, :width] for name, v in rows.columns.items()}
        seconds = time.perf_counter() - request.began
        decoded = Decoded(**columns, reasons=[rows.reasons[k]], steps=steps, forwards=steps, seconds=seconds)
        request.written = self.model.written([decoded])
        request.text, request.state = request.written.texts[0], "done"
        del self.running[request.number]
        return request

    def _fail(self, request: DecodingRequest, error: Exception) -> DecodingRequest:
        self._drop(request)
        request.state, request.error = "failed", error
        return request

    def _drop(self, request: DecodingRequest) -> None:
        """Take a request out of its loop."""
        del self.running[request.number]
        for loop in self.loops:
            if request.number in loop.book.index:
                loop.keep([row for row, number in enumerate(loop.book.index) if number != request.number])
