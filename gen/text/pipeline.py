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
from gen.text.contracts import Tokenizer
from gen.text.decoding import Decoded, Decoding
from gen.text.detokenize import partial_text
from gen.text.loop import decode, decode_steps
from gen.text.mask_path import MaskPath
from gen.text.prompts import lengths_of
from gen.text.tokenizers import text_end

__all__ = ["GeneratedTexts", "StreamedText", "TextPipeline", "engine_of"]

Prompt = str | Sequence[int] | Tensor
LENGTH = 64  # tokens of a text, where nobody says how many and the canvas has room


@dataclass(frozen=True, eq=False)
class GeneratedTexts:
    """Texts, and what they took.

    Attributes:
        texts: what was written after each prompt.
        decoded: tokens, counts and trace of each batch.
    """

    texts: list[str]
    decoded: list[Decoded]

    def __repr__(self) -> str:
        first = f", the first {self.texts[0]:.40}" if self.texts else ""
        return (
            f"GeneratedTexts({len(self.texts)} texts of {self.tokens} tokens, {self.nfe:g} evaluations each{first!r})"
        )

    @property
    def tokens(self) -> int:
        """Number of tokens that were written, end-of-text tokens included, prompts not."""
        return sum(int((d.text_end - d.prompt_end).sum()) for d in self.decoded)

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
        text: its string, "·" for each mask, up to its first end-of-text token.
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
        length: int | Sequence[int] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        sync_every: int = 1,
        progress: bool = False,
        **changes: Any,
    ) -> GeneratedTexts:
        """Write a text after each prompt; text i depends on its prompt, its seed and i alone.

        Where two guesses are as good up to rounding, which depends on the batch, the first is taken (gen.text.ties).

        Args:
            prompts: one or several, strings or ids.
            length: tokens of a text, at most; None for 64, or what the model's canvas has room for.
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
        return GeneratedTexts([self.text(d.text(i)) for d in decoded for i in range(len(d.nfe))], decoded)

    def stream(
        self, prompt: Prompt, length: int | None = None, *, seed: int = 0, **changes: Any
    ) -> Iterator[StreamedText]:
        """Yield the text after every step; the last one is what `generate` writes.

        Args:
            prompt: a string or ids.
            length, seed, changes: as in `generate`.
        """
        ids = self.ids(prompt)
        if len(ids) != 1:
            raise UserError(f"stream writes after one prompt, and {len(ids)} are given")
        lengths, decoding = self.lengths(ids, length), self.plan(**changes)
        for step in decode_steps(self.net, ids, lengths, decoding, seed=sample_seeds(seed, 1)):
            text = slice(len(ids[0]), int(step.text_end[0]))
            tokens, guess = step.tokens[0, text].tolist(), step.guess[0, text].tolist()
            committed = [None if token == self.net.mask_token_id else token for token in tokens]
            shown = committed[: self.end(tokens)]
            yield StreamedText(partial_text(shown, self.text, self.separator, ids[0]), committed, guess)

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

    def ids(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        """Return every prompt's ids; UserError for none at all, and for what are neither strings nor ids."""
        one = isinstance(prompts, str) or getattr(prompts, "ndim", 0) == 1
        try:
            several: list[Any] = [prompts] if one else list(prompts)
            if several and all(isinstance(p, Integral) for p in several):
                several = [several]
            ids = [self.encode(p) if isinstance(p, str) else [operator.index(v) for v in p] for p in several]
        except TypeError:
            given = " ".join(repr(prompts).split())
            raise UserError(f"generate: prompts = {given:.80}; a string or ids, or several of them") from None
        if not ids:
            raise UserError('generate: no prompts; an empty one is ""')
        return ids

    def prompt_of(self, item: Mapping[str, Tensor]) -> tuple[list[int], int]:
        """Return the prompt of an item of text data and the number of tokens after it.

        An item without a prompt begins with the first quarter of its text.
        """
        x = item["x"]
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
        given = given[: self.end(given)]
        return " ".join(map(str, given)) if self.tokenizer is None else self.tokenizer.decode(given)

    def end(self, ids: Sequence[int]) -> int:
        """Return the index of the first end-of-text token, or the number of ids."""
        return next((i for i, v in enumerate(ids) if v in self.net.eos_token_ids), len(ids))

    def lengths(self, ids: Sequence[Sequence[int]], length: int | Sequence[int] | None) -> list[int]:
        """Return the length of each text; UserError where prompt and text are longer than the network's canvas."""
        room = [LENGTH if self.length is None else self.length - len(p) for p in ids]
        if length is None:
            length = [max(1, min(LENGTH, n)) for n in room]
        lengths = lengths_of(length, len(ids))
        for i, (p, n) in enumerate(zip(ids, lengths, strict=True)):
            if self.length is not None and n > room[i]:
                raise UserError(
                    f"prompt {i} has {len(p)} tokens and its text may have {n}: together more than the {self.length} "
                    "that this model was made for"
                )
        return lengths


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
