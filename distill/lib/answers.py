"""The answer store: what a text model writes, one token at a time, after the prompts of its own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.data.answers import Answers
from gen.diffusion.noise import derive, sample_seeds
from gen.distillers.lib.shards import SHARD, fill_shards
from gen.pipeline import load, locate
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoded, Decoding
from gen.text.loop import decode
from gen.text.pipeline import TextPipeline

__all__ = ["Asked", "is_right", "make_answers", "make_store", "padded", "sequential", "text_teacher"]

BATCH = 256  # of texts that are decoded together


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts: their ids, how many tokens each answer may have, a seed for each."""

    prompts: list[list[int]]
    lengths: list[int]
    seeds: list[int]

    def __getitem__(self, rows: slice) -> Asked:
        return Asked(self.prompts[rows], self.lengths[rows], self.seeds[rows])


def text_teacher(folder: Path, owner: str) -> TextPipeline:
    """The text model in a run folder; UserError for one that is sampled."""
    made = load(folder)
    if not isinstance(made, TextPipeline):
        raise UserError(f"{owner} distils text models, which are decoded, and {folder} is none")
    return made


def sequential(how: Decoding) -> Decoding:
    """The same, but one token in each step, the likeliest first, and nothing taken from memory."""
    return replace(how, policy=TopK(), kv_plan=None)


def make_answers(
    teacher: TextPipeline,
    data: Any,
    folder: Path,
    n: int,
    *,
    right: bool = True,
    length: int | None = None,
    quiet: bool = False,
    shard: int = SHARD,
) -> Answers:
    """The teacher's sequential answers to n prompts of data.open("train"), in `folder`; whole shards are kept.

    right: only those that the data's own right(prompt, answer) calls right; data without one keep all. length: of each
    answer, at most; None for the item's own. Raises UserError if the folder holds answers of another kind.
    """
    how, data = sequential(teacher.decoding), getattr(data, "of", data)
    checked = right and hasattr(data, "right")

    def made(asked: Asked) -> dict[str, Tensor]:
        decoded = decode(teacher.net, asked.prompts, asked.lengths, how, seed=asked.seeds)
        columns = padded(teacher, asked, decoded)
        if not checked:
            return columns
        kept = torch.tensor([is_right(data, p, decoded.text(i).tolist()) for i, p in enumerate(asked.prompts)])
        return {key: value[kept] for key, value in columns.items()}

    about = {"decoding": spec_of(how, named=False), "right": checked, "length": length}
    return make_store(teacher, data, folder, n, about, made, length=length, quiet=quiet, shard=shard)


def make_store(
    teacher: TextPipeline,
    data: Any,
    folder: Path,
    n: int,
    about: Mapping[str, Any],
    made: Callable[[Asked], dict[str, Tensor]],
    *,
    length: int | None = None,
    quiet: bool = False,
    shard: int = SHARD,
    holdout: float = 0.05,
) -> Answers:
    """What is made of n prompts of `data`, in batches: made(prompts) gives columns of as many rows as there may be."""
    opened = data.open("train")
    generator = torch.Generator().manual_seed(derive("answers", 0))
    order = torch.randperm(len(opened), generator=generator)[:n].tolist()

    def rows(first: int, count: int) -> dict[str, Tensor]:
        asked = _asked(teacher, [opened[i] for i in order[first : first + count]], length, first)
        parts = [made(asked[a : a + BATCH]) for a in range(0, count, BATCH)]
        return {key: torch.cat([p[key] for p in parts]) for key in parts[0]}

    parent = checkpoints.read(locate(teacher.folder), verify=False)["sha256"] if teacher.folder else None
    about = {"parent": parent, "prompts": opened.fingerprint, "shape": [teacher.length], **about}
    fill_shards(folder, "answers", len(order), about, rows, quiet, shard)
    return Answers(str(folder), data, holdout)


def _asked(teacher: TextPipeline, items: Sequence[Mapping[str, Tensor]], length: int | None, first: int) -> Asked:
    """What is asked of a teacher; an item without a prompt begins with the first quarter of itself."""
    prompts, lengths = list[list[int]](), list[int]()
    for item in items:
        end = int(item.get("length", torch.tensor(len(item["x"]))))
        start = int(item.get("prompt", torch.tensor(0))) or end // 4
        prompts.append(item["x"][:start].tolist())
        lengths.append(max(1, end - start) if length is None else length)
    teacher.lengths(prompts, lengths)
    return Asked(prompts, lengths, sample_seeds(0, len(items), first))


def padded(teacher: TextPipeline, asked: Asked, decoded: Decoded) -> dict[str, Tensor]:
    """Decoded texts as items: x, prompt, length, when; what follows a stop token is padding that counts as text."""
    b, n = decoded.tokens.shape
    wide, pad = n if teacher.length is None else teacher.length, (*teacher.net.eos_token_ids, 0)[0]
    x, when = torch.full((b, wide), pad), torch.full((b, wide), -1)
    x[:, :n], when[:, :n] = decoded.tokens.cpu(), decoded.commit_step.cpu()
    prompt = torch.tensor([len(p) for p in asked.prompts])
    length, places = prompt + torch.tensor(asked.lengths), torch.arange(wide)
    beyond = places >= length[:, None]
    x, when = x.masked_fill(beyond, pad), when.masked_fill(beyond, -1)
    never = (when < 0) & (places >= prompt[:, None]) & ~beyond  # behind a stop token that came first
    return {"x": x, "prompt": prompt, "length": length, "commit_step": torch.where(never, n, when)}


def is_right(data: Any, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether data with a right(prompt, answer) of words says that an answer is right, a word being one id."""
    tokenizer = data.tokenizer
    cut = next((i for i, v in enumerate(answer) if v in tokenizer.eos_token_ids), len(answer))
    words = [[tokenizer.decode([v]) for v in ids] for ids in (prompt, answer[:cut])]
    return bool(data.right(*words))
