"""The answer store: a text model's answers, decoded one token at a time, to the prompts of its own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.data import DataSource
from gen.data.answers import Answers
from gen.data.lib.shards import WHOLE_STORE, ShardPlan
from gen.diffusion.noise import derive, sample_seeds
from gen.pipeline import load
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoded, Decoding
from gen.text.loop import decode
from gen.text.pipeline import TextPipeline
from gen.training.shard_store import fill_shards, parent_hash

__all__ = [
    "PromptBatch",
    "answer_columns",
    "is_correct",
    "make_answer_store",
    "make_answers",
    "sequential_decoding",
    "text_teacher",
]

BATCH = 256  # texts that are decoded together


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts for a teacher; a slice of it is a smaller one.

    Attributes:
        prompts: their token ids.
        lengths: number of tokens that each answer may have.
        seeds: one for each.
    """

    prompts: list[list[int]]
    lengths: list[int]
    seeds: list[int]

    def __getitem__(self, rows: slice) -> PromptBatch:
        return PromptBatch(self.prompts[rows], self.lengths[rows], self.seeds[rows])


def text_teacher(folder: Path, owner: str) -> TextPipeline:
    """Load the text model in a run folder.

    Args:
        folder: of the run.
        owner: name of the distiller, for the message.

    Raises:
        UserError: for a model that is sampled.
    """
    pipeline = load(folder)
    if not isinstance(pipeline, TextPipeline):
        raise UserError(f"{owner} distils text models, which are decoded, and {folder} is none")
    return pipeline


def sequential_decoding(decoding: Decoding) -> Decoding:
    """Return the same decoding with one token a step, the likeliest first, and every position computed anew.

    Args:
        decoding: a teacher's.
    """
    return replace(decoding, policy=TopK(), kv_plan=None)


def make_answers(
    teacher: TextPipeline,
    data: DataSource,
    folder: Path,
    n: int,
    *,
    only_correct: bool = True,
    length: int | None = None,
    plan: ShardPlan = WHOLE_STORE,
) -> Answers:
    """Generate the teacher's sequential answers to prompts; whole shards that are there already are kept.

    Args:
        teacher: the text model.
        data: a data set of texts, or of answers to one; prompts are of its training items.
        folder: of the store.
        n: number of prompts.
        only_correct: keep only answers that the data's own right(prompt, answer) calls right; data without one keep
            all.
        length: tokens of an answer, at most; None for the item's own.
        plan: how the store is written.

    Raises:
        UserError: if the folder holds answers of another kind.
    """
    decoding, data = sequential_decoding(teacher.decoding), getattr(data, "of", data)
    checked = only_correct and hasattr(data, "right")

    def generate(batch: PromptBatch) -> dict[str, Tensor]:
        decoded = decode(teacher.net, batch.prompts, batch.lengths, decoding, seed=batch.seeds)
        columns = answer_columns(teacher, batch, decoded)
        if not checked:
            return columns
        kept = torch.tensor([is_correct(data, p, decoded.text(i).tolist()) for i, p in enumerate(batch.prompts)])
        return {key: value[kept] for key, value in columns.items()}

    about = {"decoding": spec_of(decoding, named=False), "right": checked, "length": length}
    return make_answer_store(teacher, data, folder, n, about, generate, length=length, plan=plan)


def make_answer_store(
    teacher: TextPipeline,
    data: DataSource,
    folder: Path,
    n: int,
    about: Mapping[str, Any],
    generate: Callable[[PromptBatch], dict[str, Tensor]],
    *,
    length: int | None = None,
    plan: ShardPlan = WHOLE_STORE,
    holdout: float = 0.05,
) -> Answers:
    """Write a store of columns that are generated from prompts of a data set.

    Args:
        teacher, data, folder, n, length, plan: as of `make_answers`.
        about: manifest of the store, beside teacher, prompts and shape.
        generate: maps prompts to columns of any equal number of rows.
        holdout: share of the rows that the store holds out.
    """
    opened = getattr(data, "whole", data).open("train")
    generator = torch.Generator().manual_seed(derive("answers", 0))
    order = torch.randperm(len(opened), generator=generator)[:n].tolist()
    unknown = {"length"} if length is None and "length" not in opened[0] else set()  # as the prompts' data have it

    def rows(first: int, count: int) -> dict[str, Tensor]:
        batch = _prompts(teacher, [opened[i] for i in order[first : first + count]], length, first)
        parts = [generate(batch[a : a + BATCH]) for a in range(0, count, BATCH)]
        return {key: torch.cat([p[key] for p in parts]) for key in parts[0] if key not in unknown}

    parent = parent_hash(teacher.folder)
    about = {"parent": parent, "prompts": opened.fingerprint, "shape": [teacher.length], **about}
    fill_shards(folder, "answers", len(order), about, rows, plan)
    return Answers(str(folder), data, holdout)


def _prompts(
    teacher: TextPipeline, items: Sequence[Mapping[str, Tensor]], length: int | None, first: int
) -> PromptBatch:
    prompts, room = (list(each) for each in zip(*(teacher.prompt_of(item) for item in items), strict=True))
    lengths = room if length is None else [length] * len(items)
    teacher.lengths(prompts, lengths)
    return PromptBatch(prompts, lengths, sample_seeds(0, len(items), first))


def answer_columns(teacher: TextPipeline, batch: PromptBatch, decoded: Decoded) -> dict[str, Tensor]:
    """Return decoded texts as items; what follows an end-of-text token is padding that counts as text.

    Args:
        teacher: the text model.
        batch: the prompts.
        decoded: the texts.

    Returns:
        x [B, L], prompt and length [B], and commit_step [B, L], -1 outside the answer.
    """
    b, n = decoded.tokens.shape
    wide, pad = n if teacher.length is None else teacher.length, (*teacher.net.eos_token_ids, 0)[0]
    x, step = torch.full((b, wide), pad), torch.full((b, wide), -1)
    x[:, :n], step[:, :n] = decoded.tokens.cpu(), decoded.commit_step.cpu()
    prompt = torch.tensor([len(p) for p in batch.prompts])
    length, positions = prompt + torch.tensor(batch.lengths), torch.arange(wide)
    beyond = positions >= length[:, None]
    x, step = x.masked_fill(beyond, pad), step.masked_fill(beyond, -1)
    after_eos = (step < 0) & (positions >= prompt[:, None]) & ~beyond
    return {"x": x, "prompt": prompt, "length": length, "commit_step": torch.where(after_eos, n, step)}


def is_correct(data: Any, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Return whether data with a right(prompt, answer) of words, a word being one id, calls an answer right.

    Args:
        data: with a tokenizer.
        prompt, answer: token ids.
    """
    tokenizer = data.tokenizer
    cut = next((i for i, v in enumerate(answer) if v in tokenizer.eos_token_ids), len(answer))
    words = [[tokenizer.decode([v]) for v in ids] for ids in (prompt, answer[:cut])]
    return bool(data.right(*words))
