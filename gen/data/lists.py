"""Lists of letters with ten tasks: text whose every right answer is known, generated item by item."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields
from gen.data.lib.tensors import check_split, content_hash
from gen.diffusion.noise import derive
from gen.text.tokenizers.words import Words

__all__ = ["Lists"]

TASKS = (
    "copy",
    "reverse",
    "sort",
    "shuffle",
    "insert_index",
    "insert_random",
    "remove_index",
    "remove_random",
    "replace_index",
    "replace_random",
)
FIXED = ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index")  # those with one right answer
END, IS = "<eos>", "="


@dataclass(frozen=True)
class Lists:
    """Prompts such as "insert_index w 2 : c a f =" and their answers "c a w f <eos>", every word one token.

    The tasks of ParallelBench's waiting lines (arXiv 2510.04767) with items of one token: a random list of low to high
    different items out of `items` letters. insert and replace name a new item, *_index a position, counted from 0.
    Where several answers are right (shuffle, *_random) the item holds one of them, drawn uniformly; a shuffle always
    moves something. Answers go on with <eos> up to a random length, at most high + 2, and all of that is trained, so
    that nothing tells a model how long an answer is. Item i is a function of (seed, split, i); a prompt belongs to one
    split by its hash, a tenth of them to "test".

    Attributes:
        tasks: names out of TASKS, drawn uniformly.
        low, high: fewest and most items of a list, 2 <= low <= high < items.
        items: number of letters that lists are drawn from, at most 52.
        seed: of all draws.
        n: items of "train", at least 10; "test" has a tenth as many.
    """

    tasks: tuple[str, ...] = TASKS
    low: int = 3
    high: int = 6
    items: int = 26
    seed: int = 0
    n: int = 1_000_000

    def __post_init__(self) -> None:
        check_fields(self)
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"Lists: no task {task!r}. {nearest(task, TASKS)}")
        if not self.tasks or not 2 <= self.low <= self.high < self.items <= 52 or self.n < 10:
            raise UserError(
                f"Lists: {len(self.tasks)} tasks, low = {self.low}, high = {self.high}, items = {self.items}, n = "
                f"{self.n}; at least one task, 2 <= low <= high < items <= 52 and n >= 10"
            )

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The items: a to z, then A to Z."""
        letters = [chr(ord("a") + i) for i in range(26)]
        return tuple([*letters, *(letter.upper() for letter in letters)][: self.items])

    @property
    def tokenizer(self) -> Words:
        """A tokeniser with one token for each task, item and number."""
        return Words((*self.alphabet, *map(str, range(self.high + 1)), *TASKS, ":", IS))

    @property
    def vocab_size(self) -> int:
        """The number of token ids, stop and mask tokens included."""
        return self.tokenizer.vocab_size

    @property
    def answer(self) -> int:
        """The length of the longest answer, <eos> included."""
        return self.high + 2

    @property
    def shape(self) -> tuple[int]:
        """The shape (L,) of one item: the longest prompt and the longest answer."""
        return (self.high + 5 + self.answer,)

    @property
    def classes(self) -> int:
        """0: text has no labels."""
        return 0

    def open(self, split: str) -> ListItems:
        """Open "train" or "test"."""
        check_split(split)
        return ListItems(self, split)

    def make(self, split: str, i: int) -> tuple[list[str], list[str], int]:
        """Return prompt, answer and number of positions after the prompt of item i."""
        draw = random.Random(derive("lists", self.seed, split, i))
        while True:
            task = draw.choice(self.tasks)
            things = draw.sample(self.alphabet, draw.randint(self.low, self.high) + 1)
            new, old = things[0], things[1:]
            at = draw.randint(0, len(old) if task.startswith("insert") else len(old) - 1)
            words = [task]
            words += [new] if task.startswith(("insert", "replace")) else []
            words += [str(at)] if task.endswith("index") else []
            prompt = [*words, ":", *old, IS]
            if (derive("prompt", *prompt) % 10 == 0) == (split == "test"):
                break
        answer = _answer(task, old, new, at, draw)
        return prompt, answer, draw.randint(len(answer) + 1, self.answer)

    def right(self, prompt: Sequence[str], answer: Sequence[str]) -> bool:
        """Return whether an answer, up to its <eos>, is a right one to a prompt."""
        task, old = prompt[0], list(prompt[prompt.index(":") + 1 : -1])
        given = list(answer[: answer.index(END)] if END in answer else answer)
        new = prompt[1] if task.startswith(("insert", "replace")) else ""
        if task == "shuffle":
            return given != old and sorted(given) == sorted(old)
        if task in FIXED:
            at = int(prompt[prompt.index(":") - 1]) if task.endswith("index") else 0
            return given == _answer(task, old, new, at, random.Random(0))
        last = len(old) + task.startswith("insert")
        return any(given == _edited(task, old, new, at) for at in range(last))


@dataclass(frozen=True, eq=False)
class ListItems:
    """Items {"x": int64 [L] padded with the stop token, "prompt": int64 0-d, "length": int64 0-d}, drawn when read."""

    lists: Lists
    split: str

    @cached_property
    def _words(self) -> Words:
        return self.lists.tokenizer

    @property
    def fingerprint(self) -> str:
        lists = self.lists
        return content_hash("lists", repr((lists.tasks, lists.low, lists.high, lists.items, lists.seed, lists.n)))

    def __len__(self) -> int:
        return self.lists.n if self.split == "train" else self.lists.n // 10

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        prompt, answer, positions = self.lists.make(self.split, i)
        x = torch.full(self.lists.shape, self._words.eos_token_ids[0])
        ids = self._words.encode(" ".join([*prompt, *answer]))
        x[: len(ids)] = torch.tensor(ids)
        return {"x": x, "prompt": torch.tensor(len(prompt)), "length": torch.tensor(len(prompt) + positions)}


def _answer(task: str, old: list[str], new: str, at: int, draw: random.Random) -> list[str]:
    """Return a right answer."""
    if task == "copy":
        return list(old)
    if task == "reverse":
        return old[::-1]
    if task == "sort":
        return sorted(old)
    if task == "shuffle":
        moved = list(old)
        while moved == old:
            draw.shuffle(moved)
        return moved
    return _edited(task, old, new, at)


def _edited(task: str, old: list[str], new: str, at: int) -> list[str]:
    """Return the list with one position changed."""
    if task.startswith("insert"):
        return [*old[:at], new, *old[at:]]
    return [*old[:at], *([new] if task.startswith("replace") else []), *old[at + 1 :]]
