"""A trained text model ready to write: `gen.load("runs/text").generate("Once", 64, policy="threshold")`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.diffusion.noise import sample_seeds
from gen.text.decoding import Decoded, Decoding
from gen.text.loop import decode, decode_steps, lengths_of

__all__ = ["TextPipeline", "Texts", "engine_of"]

Prompt = str | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Texts:
    """texts: what was written after each prompt. decoded: each batch's tokens, counts and trace (gen/text/loop.py)."""

    texts: list[str]
    decoded: list[Decoded]

    @property
    def tokens(self) -> int:
        """How many tokens were written, stop tokens included, prompts not."""
        return sum(int((d.text_end - d.prompt_end).sum()) for d in self.decoded)

    @property
    def nfe(self) -> float:
        """Evaluations of the network per text, counted."""
        return sum(float(d.nfe.sum()) for d in self.decoded) / sum(len(d.nfe) for d in self.decoded)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens written over evaluations, the mean over all texts weighted by their evaluations."""
        return self.tokens / sum(int(d.nfe.sum()) for d in self.decoded)

    @property
    def seconds(self) -> float:
        return sum(d.seconds for d in self.decoded)

    @property
    def reasons(self) -> list[str]:
        """What ended each text: "full", or the name of a stop rule."""
        return [reason for d in self.decoded for reason in d.reasons]


@dataclass(frozen=True, eq=False)
class TextPipeline:
    """A network that predicts masked tokens (gen/text/contracts/predictor.py), its tokeniser, and how it wants to be
    decoded.

    tokenizer: None for a model that came without one; its words are ids then, "3 1 4". length: the longest canvas,
    prompt and text together, that it was made for. engine: what the network was prepared by, see `prepared`.
    """

    net: Any
    tokenizer: Any
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

    def prepared(self, engine: Any = "packed") -> TextPipeline:
        """The same pipeline with its network evaluated by an engine of gen.models.engines: a name, a spec or an object.

        Logits are the same within the rounding of the engine's dtype; where two guesses are about as good, texts may
        differ.
        """
        if self.engine is not None:
            raise UserError(f"{self.name} is prepared already; prepare the pipeline that was loaded")
        engine = engine_of(engine)
        return replace(self, net=engine.prepare(self.net, self.device), engine=engine)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        length: int | Sequence[int] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        sync_every: int = 1,
        **changes: Any,
    ) -> Texts:
        """A text of at most `length` tokens after each prompt; text i depends on its prompt, its seed and i alone.

        Where two guesses are exactly as good, rounding decides, and rounding depends on the batch.

        length: None for 64, or what the model's canvas has room for.
        prompts: one or several, strings or ids. changes: policy, block_schedule, kv_plan, stopping_rules (names,
        specs or objects), sampling, temperature, block_length, cfg_scale, suppress_tokens; what is left out is as the
        model was made to be decoded. sync_every: see gen.text.loop.decode_steps.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"generate: batch_size = {batch_size!r}; a whole number, at least 1")
        ids = self.ids(prompts)
        how, seeds = self.plan(**changes), sample_seeds(seed, len(ids))
        lengths = self.lengths(ids, length)
        decoded = [
            decode(self.net, ids[a : a + batch_size], lengths[a : a + batch_size], how, seed=seeds[a : a + batch_size],
                   sync_every=sync_every)
            for a in range(0, len(ids), batch_size)
        ]  # fmt: skip
        texts = [self.words(d.text(i)) for d in decoded for i in range(len(d.nfe))]
        return Texts(texts, decoded)

    def stream(
        self, prompt: Prompt, length: int | None = None, *, seed: int = 0, **changes: Any
    ) -> Iterator[tuple[list[int | None], list[int]]]:
        """After every step: the ids of the text with None where nothing is committed, and the ids it would be now."""
        several = self.ids(prompt)
        if len(several) != 1:
            raise UserError(f"stream writes after one prompt, and {len(several)} are given")
        (ids,) = several
        (longest,) = self.lengths([ids], length)
        seeds = sample_seeds(seed, 1)
        for now in decode_steps(self.net, [ids], longest, self.plan(**changes), seed=seeds):
            here = slice(len(ids), len(ids) + longest)
            firm = [None if token == self.net.mask_token_id else token for token in now.tokens[0, here].tolist()]
            yield firm, now.guess[0, here].tolist()

    def plan(self, *, temperature: float | None = None, block_length: int | None = None, **changes: Any) -> Decoding:
        """The model's Decoding with some parts replaced."""
        unknown = set(changes) - set(self.decoding.__dataclass_fields__)
        if unknown:
            allowed = [*self.decoding.__dataclass_fields__, "temperature", "block_length"]
            raise UserError(f"generate: unknown {', '.join(sorted(unknown))}. Allowed: {', '.join(allowed)}.")
        how = override(self.decoding, changes)
        if temperature is not None:
            how = override(how, {"sampling.temperature": temperature})
        if block_length is not None:
            if not hasattr(how.block_schedule, "length"):
                kind = type(how.block_schedule).__name__
                raise UserError(f"block_length = {block_length}, and {kind} has no blocks of a length")
            how = override(how, {"block_schedule.length": block_length})
        return how

    def ids(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        """Every prompt's ids; UserError for none at all, and for what are neither strings nor ids."""
        one = isinstance(prompts, str) or getattr(prompts, "ndim", 0) == 1
        try:
            many: list[Any] = [prompts] if one else list(prompts)
            if many and all(isinstance(p, Integral) for p in many):
                many = [many]
            ids = [self.encode(p) if isinstance(p, str) else [operator.index(v) for v in p] for p in many]
        except TypeError:
            given = " ".join(repr(prompts).split())
            raise UserError(f"generate: prompts = {given:.80}; a string or ids, or several of them") from None
        if not ids:
            raise UserError('generate: no prompts; an empty one is ""')
        return ids

    def encode(self, text: str) -> list[int]:
        """A string's ids."""
        if self.tokenizer is not None:
            return self.tokenizer.encode(text)
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            raise UserError(f'{text!r}: this model has no tokenizer, its prompts are ids, such as "3 1 4"') from None

    @property
    def separator(self) -> str:
        """What stands between a prompt and its text."""
        return " " if self.tokenizer is None else str(self.tokenizer.separator)

    def words(self, ids: Tensor | Sequence[int]) -> str:
        """The string of a text's ids, up to its first stop token."""
        found = [int(v) for v in ids]
        cut = next((i for i, v in enumerate(found) if v in self.net.eos_token_ids), len(found))
        if self.tokenizer is None:
            return " ".join(map(str, found[:cut]))
        return self.tokenizer.decode(found[:cut])

    def lengths(self, ids: Sequence[Sequence[int]], length: int | Sequence[int] | None) -> list[int]:
        """How long each text may be; UserError where prompt and text are longer than the network's canvas."""
        room = [64 if self.length is None else self.length - len(p) for p in ids]
        if length is None:
            length = [max(1, min(64, n)) for n in room]
        lengths = lengths_of(length, len(ids))
        for i, (p, n) in enumerate(zip(ids, lengths, strict=True)):
            if self.length is not None and n > room[i]:
                raise UserError(
                    f"prompt {i} has {len(p)} tokens and its text may have {n}: together more than the {self.length} "
                    "that this model was made for"
                )
        return lengths


def engine_of(given: Any) -> Any:
    """What a name, a spec or an object of gen.models.engines stands for; UserError for what prepares nothing."""
    engine = build("models.engines", given)
    if isinstance(engine, type) or not (is_dataclass(engine) and hasattr(engine, "prepare")):
        raise UserError(
            f"engine = {given!r}; allowed: a name of gen.models.engines, a spec, or a dataclass object with prepare()"
        )
    return engine
