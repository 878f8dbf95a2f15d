"""A trained text model ready to write: `gen.load("runs/text").generate("Once", 64, policy="threshold")`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_arguments
from gen.config.spec import build, name_of, override
from gen.diffusion.noise import sample_seeds
from gen.text.chat import Messages, chat_prompt
from gen.text.contracts import Tokenizer
from gen.text.decoding import Decoded, Decoding
from gen.text.detokenize import partial_text
from gen.text.editing import Span, with_gaps
from gen.text.gaps import DROPPED, Gap, holds_gap, text_positions
from gen.text.loop import decode, decode_steps
from gen.text.mask_path import MaskPath
from gen.text.prompts import Lengths, lengths_of
from gen.text.tokenizers import text_end

__all__ = ["GeneratedTexts", "StreamedText", "TextPipeline", "engine_of", "first_gap"]

Prompt = str | Sequence[int] | Tensor | Sequence[str | int | Gap | Sequence[int] | Tensor]
"""A string, ids, or a list with gaps in it and strings and ids between them."""
Ids = list[int | Gap]
LENGTH = 64  # tokens of a text, where nobody says how many and the canvas has room


@dataclass(frozen=True, eq=False)
class GeneratedTexts:
    """Texts, and what they took.

    Attributes:
        texts: what was written after each prompt; of a prompt with gaps, all from the first of them on.
        fills: what was written in each gap of each prompt; in one without gaps, the text.
        documents: prompt and text together.
        decoded: tokens, counts and trace of each batch.
    """

    texts: list[str]
    fills: list[list[str]]
    documents: list[str]
    decoded: list[Decoded]

    def __repr__(self) -> str:
        first = f", the first {self.texts[0]:.40}" if self.texts else ""
        return (
            f"GeneratedTexts({len(self.texts)} texts of {self.tokens} tokens, {self.nfe:g} evaluations each{first!r})"
        )

    @property
    def tokens(self) -> int:
        """Number of tokens that were written, end-of-text tokens included, prompts not."""
        return sum(int((d.gap_start >= 0).sum()) for d in self.decoded)

    @property
    def nfe(self) -> float:
        """Evaluations of the network per text, counted."""
        return self._evaluations / sum(len(d.nfe) for d in self.decoded)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens written over evaluations, the mean over all texts weighted by their evaluations."""
        return self.tokens / self._evaluations

    @property
    def seconds(self) -> float:
        """Duration of the decoding loops."""
        return sum(d.seconds for d in self.decoded)

    @property
    def reasons(self) -> list[str]:
        """What ended each text: "full", or the name of a stopping rule."""
        return [reason for d in self.decoded for reason in d.reasons]

    @property
    def _evaluations(self) -> int:
        return sum(int(d.nfe.sum()) for d in self.decoded)


class StreamedText(NamedTuple):
    """A text after one step of decoding.

    Attributes:
        text: its string, "·" for each mask, up to its first end-of-text token; of a prompt with gaps, all from the
            first gap on, each up to such a token.
        committed: its ids, None for each mask.
        guess: its ids as they would be now.
    """

    text: str
    committed: list[int | None]
    guess: list[int]


@dataclass(frozen=True, eq=False)
class TextPipeline:
    """A network that predicts masked tokens, its tokenizer, and how it is decoded by default.

    Attributes:
        net: a Predictor (gen.text.contracts.Predictor).
        tokenizer: None for a model that came without one; its prompts and texts are ids then, "3 1 4".
        decoding: how it is decoded, unless `generate` is given something else.
        length: tokens of the longest canvas, prompt and text together; None for no limit.
        data: the data set that it was trained on, if known.
        name: name of the run.
        params: number of parameters.
        device: where the network is.
        folder: the run's or the checkpoint's.
        weights: "raw", or the label of an average.
        info: the checkpoint's manifest.
        engine: what the network was prepared by, see `prepared`.
        path: that the network was trained on, for policies that follow it; None if it is not known.
    """

    net: Any
    tokenizer: Tokenizer | None
    decoding: Decoding = field(default_factory=Decoding)
    length: int | None = None
    data: Any = None
    name: str = "model"
    params: int = 0
    device: torch.device | str = "cpu"
    folder: Path | None = None
    weights: str = "raw"
    info: Mapping[str, Any] | None = None
    engine: Any = None
    path: MaskPath | None = None

    def __repr__(self) -> str:
        limit = "any length" if self.length is None else f"up to {self.length} tokens"
        return (
            f"TextPipeline({self.name}: {type(self.net).__name__}, {self.params:,} parameters ({self.weights}), "
            f"{limit}, policy {name_of(type(self.decoding.policy))}, {self.device})"
        )

    def prepared(self, engine: Any = "packed") -> TextPipeline:
        """Return the same pipeline with its network evaluated by an engine.

        Logits are the same within the rounding of the engine's dtype; where two guesses are about as good, texts may
        differ.

        Args:
            engine: a name of gen.models.engines, a spec or an object.
        """
        if self.engine is not None:
            raise UserError(f"{self.name} is prepared already; prepare the pipeline that was loaded")
        engine = engine_of(engine)
        return replace(self, net=engine.prepare(self.net, self.device), engine=engine)

    @check_arguments(batch_size="[1, inf)", sync_every="[1, inf)")
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        length: Lengths = None,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        sync_every: int = 1,
        progress: bool = False,
        **changes: Any,
    ) -> GeneratedTexts:
        """Write a text after each prompt, or in its gaps; text i depends on its prompt, its seed and i alone.

        A prompt with gaps is a list such as ["def f(", Gap(32), "return x"]. Where two guesses are as good up to
        rounding, which depends on the batch, the first is taken (gen.text.ties).

        Args:
            prompts: one or several, strings or ids, or lists of those with gaps among them.
            length: tokens of a text, at most; None for 64, or what the model's canvas has room for. Not for prompts
                with gaps, which say their lengths.
            seed: a number, or one for each text.
            batch_size: texts that are decoded together.
            sync_every: see gen.text.loop.decode_steps.
            progress: whether progress is shown on the terminal.
            changes: fields of Decoding (policy, block_schedule, kv_plan, stopping_rules: names, specs or objects;
                sampling, cfg_scale, suppress_tokens), and in short temperature and block_length; what is left out is as
                in `decoding`.
        """
        from gen.training.log import ProgressBar  # gen.training imports this module

        ids = self.ids(prompts)
        decoding, seeds = self.plan(**changes), sample_seeds(seed, len(ids))
        lengths = self.lengths(ids, length)
        batches = [slice(first, first + batch_size) for first in range(0, len(ids), batch_size)]
        bar, decoded = ProgressBar(f"{self.name}, texts", len(ids), quiet=not progress), []
        for rows in batches:
            decoded.append(
                decode(self.net, ids[rows], lengths[rows], decoding, seed=seeds[rows], sync_every=sync_every)
            )
            bar.advance(len(ids[rows]))
        bar.close()
        return self.written(decoded)

    def edit(
        self,
        text: str | Sequence[int] | Tensor | GeneratedTexts,
        spans: Span | Sequence[Span],
        *,
        gap: Gap | None = None,
        seed: int = 0,
        sync_every: int = 1,
        **changes: Any,
    ) -> GeneratedTexts:
        """Write parts of a text anew; the rest stays token for token.

        Args:
            text: a string, ids, or the result of `generate` for one prompt, of which the whole document counts.
            spans: what is written anew, one or several: (start, end) of characters, or words that occur once. All
                tokens that a span touches are masked.
            gap: what is written instead of each, Gap(8) or Gap(max=8); None for as many tokens as there were.
            seed, sync_every, changes: as in `generate`.
        """
        if isinstance(text, GeneratedTexts):
            if len(text.texts) != 1:
                raise UserError(f"edit takes one text, and {len(text.texts)} are given")
            d = text.decoded[0]
            ids: Ids = d.tokens[0, : int(d.text_end[0])][d.gap_start[0, : int(d.text_end[0])] != DROPPED].tolist()
        else:
            given = self.ids(text)
            if len(given) != 1:
                raise UserError(f"edit takes one text, and {len(given)} are given")
            (ids,) = given
        tokens = [token for token in ids if not isinstance(token, Gap)]
        if len(tokens) != len(ids) or (isinstance(text, str) and self.string(tokens) != text):
            what = (
                "a text without gaps"
                if len(tokens) != len(ids)
                else f"text as its tokens say it, {self.string(tokens)!r}"
            )
            raise UserError(f"edit takes {what:.120}")
        prompt = with_gaps(tokens, self.string, spans, gap)
        return self.generate([prompt], seed=seed, sync_every=sync_every, **changes)

    def chat(
        self, messages: Messages | Sequence[Messages], length: int | Sequence[int] | None = None, **changes: Any
    ) -> GeneratedTexts:
        """Write the assistant's next turn of one chat or of several, by the chat template that came with the model.

        Args:
            messages: role ("system", "user" or "assistant") and content each; the last one is not the assistant's.
            length, changes: as in `generate`.
        """
        return self.generate(self.chat_prompts(messages), length, **changes)

    def chat_prompts(self, messages: Messages | Sequence[Messages]) -> list[list[int]]:
        """Return the ids of chats up to the assistant's next turn; see `chat`."""
        one = bool(messages) and isinstance(messages[0], Mapping)
        chats: list[Any] = [messages] if one else list(messages)
        return [chat_prompt(self.tokenizer, chat) for chat in chats]

    def stream(
        self, prompt: Prompt, length: int | None = None, *, seed: int = 0, **changes: Any
    ) -> Iterator[StreamedText]:
        """Yield the text after every step; the last one is what `generate` writes.

        Args:
            prompt: a string or ids, or a list of those with gaps among them.
            length, seed, changes: as in `generate`.
        """
        ids = self.ids(prompt)
        if len(ids) != 1:
            raise UserError(f"stream writes after one prompt, and {len(ids)} are given")
        lengths, decoding = self.lengths(ids, length), self.plan(**changes)
        before = [token for token in ids[0][: first_gap(ids[0])] if not isinstance(token, Gap)]
        for step in decode_steps(self.net, ids, lengths, decoding, seed=sample_seeds(seed, 1)):
            text = slice(len(before), int(step.text_end[0]))
            rows = (v[0, text].tolist() for v in (step.gap_start, step.tokens, step.guess))
            columns = [column for column in zip(*rows, strict=True) if column[0] != DROPPED]
            gap_start, tokens, guess = ([*row] for row in zip(*columns, strict=True))
            committed = [None if token == self.net.mask_token_id else token for token in tokens]
            shown = [committed[k] for k in text_positions(tokens, gap_start, self.net.eos_token_ids)]
            yield StreamedText(partial_text(shown, self.string, self.separator, before), committed, guess)

    def plan(self, *, temperature: float | None = None, block_length: int | None = None, **changes: Any) -> Decoding:
        """Return the model's Decoding with some of its fields replaced; see `generate`."""
        unknown = set(changes) - set(self.decoding.__dataclass_fields__)
        if unknown:
            allowed = [*self.decoding.__dataclass_fields__, "temperature", "block_length"]
            raise UserError(f"generate: unknown {', '.join(sorted(unknown))}. Allowed: {', '.join(allowed)}.")
        decoding = override(self.decoding, changes)
        if temperature is not None:
            decoding = override(decoding, {"sampling.temperature": temperature})
        if block_length is not None:
            if not hasattr(decoding.block_schedule, "length"):
                kind = type(decoding.block_schedule).__name__
                raise UserError(f"block_length = {block_length}, and {kind} has no blocks of a length")
            decoding = override(decoding, {"block_schedule.length": block_length})
        return decoding.on(self.path)

    def ids(self, prompts: Prompt | Sequence[Prompt]) -> list[Ids]:
        """Return every prompt's ids and gaps; UserError for none at all, and for what are neither strings nor ids."""
        if isinstance(prompts, Mapping):
            raise UserError(f"generate: prompts = {shown(prompts)}; a string or ids, or several of them")
        one = isinstance(prompts, str) or getattr(prompts, "ndim", 0) == 1 or holds_gap(prompts)
        try:
            several: list[Any] = [prompts] if one else list(prompts)
            if several and all(isinstance(p, Integral) for p in several):
                several = [several]
            ids = [self._ids(p) for p in several]
        except TypeError:
            given = " ".join(repr(prompts).split())
            raise UserError(f"generate: prompts = {given:.80}; a string or ids, or several of them") from None
        if not ids:
            raise UserError('generate: no prompts; an empty one is ""')
        return ids

    def _ids(self, prompt: Any) -> Ids:
        """Return a prompt's ids and gaps; TypeError for what has none."""
        if isinstance(prompt, str):
            return [*self.encode(prompt)]
        if not holds_gap(prompt):
            return [_token_id(v) for v in prompt]
        ids: Ids = []
        for part in prompt:
            single = isinstance(part, (Gap, Integral))
            ids += [part if isinstance(part, Gap) else _token_id(part)] if single else self._ids(part)
        return ids

    def prompt_of(self, item: Mapping[str, Tensor]) -> tuple[list[int], int]:
        """Return the prompt of an item of text data and the number of tokens after it.

        An item without a prompt begins with the first quarter of its text; of several texts the first one counts.
        """
        x = item["x"]
        if (documents := item.get("document")) is not None:
            x = x[documents == documents[0]]
            given = int(item["given"][: len(x)].long().cumprod(0).sum())
            item = {"x": x, "prompt": torch.tensor(given)}
        start = int(item.get("prompt", 0)) or int(text_end(x, self.net.eos_token_ids)) // 4
        return x[:start].tolist(), max(1, int(item.get("length", len(x))) - start)

    def encode(self, text: str) -> list[int]:
        """Return a string's ids."""
        if self.tokenizer is not None:
            return self.tokenizer.encode(text)
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            raise UserError(f'{text!r}: this model has no tokenizer, its prompts are ids, such as "3 1 4"') from None

    @property
    def separator(self) -> str:
        """String between a prompt and its text."""
        return " " if self.tokenizer is None else self.tokenizer.separator

    def text(self, ids: Tensor | Sequence[int]) -> str:
        """Return the string of a text's ids, up to its first end-of-text token."""
        given = [int(v) for v in ids]
        return self.string(given[: self.end(given)])

    def string(self, ids: Sequence[int]) -> str:
        """Return the string of ids, end-of-text tokens among them or not."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(ids)

    def written(self, decoded: list[Decoded]) -> GeneratedTexts:
        """Return the strings of decoded texts."""
        out = GeneratedTexts([], [], [], decoded)
        for d in decoded:
            for i, (start, stop) in enumerate(zip(d.prompt_end.tolist(), d.text_end.tolist(), strict=True)):
                ids, gap_start = d.tokens[i, :stop].tolist(), d.gap_start[i, :stop].tolist()
                kept = text_positions(ids, gap_start, self.net.eos_token_ids)
                gaps = sorted({first for first in gap_start if first >= 0})
                out.texts.append(self.string([ids[k] for k in kept if k >= start]))
                out.fills.append([self.string([ids[k] for k in kept if gap_start[k] == gap]) for gap in gaps])
                out.documents.append(self.string([ids[k] for k in kept]))
        return out

    def end(self, ids: Sequence[int]) -> int:
        """Return the index of the first end-of-text token, or the number of ids."""
        return next((i for i, v in enumerate(ids) if v in self.net.eos_token_ids), len(ids))

    def lengths(self, ids: Sequence[Sequence[int | Gap]], length: Lengths) -> list[int | None]:
        """Return the length of each text, None for one whose prompt has gaps.

        UserError where prompt and text are longer than the network's canvas.
        """
        given = [sum(part.size if isinstance(part, Gap) else 1 for part in p) for p in ids]
        if length is None:
            room = [LENGTH if self.length is None else self.length - n for n in given]
            length = [None if holds_gap(p) else max(1, min(LENGTH, n)) for p, n in zip(ids, room, strict=True)]
        lengths = lengths_of(length, ids)
        for i, (p, n, prompt) in enumerate(zip(given, lengths, ids, strict=True), 1):
            if self.length is not None and p + (n or 0) > self.length:
                fixed, last = sum(not isinstance(part, Gap) for part in prompt), first_gap(prompt) >= len(prompt) - 1
                left, what = self.length - fixed, "its text" if last else "its gaps"
                advice = f"ask for at most {left}" if left > 0 else f"shorten the prompt by {1 - left} or more"
                raise UserError(
                    f"prompt {i} has {fixed} tokens and {what} may have {p - fixed + (n or 0)}: together more than the "
                    f"{self.length} that this model was made for; {advice}"
                )
        return lengths


def first_gap(prompt: Sequence[int | Gap]) -> int:
    """Return the index of a prompt's first gap, or its length.

    Args:
        prompt: ids and gaps.
    """
    return next((i for i, part in enumerate(prompt) if isinstance(part, Gap)), len(prompt))


def engine_of(engine: Any) -> Any:
    """Return an engine from its name, its spec or itself.

    Args:
        engine: of gen.models.engines; UserError for what prepares nothing.
    """
    built = build("models.engines", engine)
    if isinstance(built, type) or not (is_dataclass(built) and hasattr(built, "prepare")):
        raise UserError(
            f"engine = {shown(engine)}; allowed: a name of gen.models.engines, a spec, or a dataclass with prepare()"
        )
    return built


def _token_id(value: Any) -> int:
    """Return a token id; TypeError for what is no whole number."""
    if isinstance(value, bool):
        raise TypeError("a truth value is no id")
    number = operator.index(value)
    if not 0 <= number < 2**63:
        raise UserError(f"generate: a prompt holds the id {shown(number)}; allowed: those of the model's tokens")
    return number
