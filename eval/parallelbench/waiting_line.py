"""Waiting line: ten things that one may do with a list of names (ParallelBench)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.parallelbench.lib.copy import names_in, prompt_in
from gen.eval.parallelbench.lib.names import FIRST, LAST
from gen.eval.parallelbench.lib.rules import expected, parse, solves, text_of
from gen.eval.parallelbench.lib.sample import Question, ask, buckets, choose, seed_of

__all__ = ["WaitingLine"]

TaskName = Literal[
    "copy", "sort", "reverse", "shuffle", "insert_index", "insert_random", "remove_index", "remove_random",
    "replace_index", "replace_random",
]  # fmt: skip

HEAD = "People are waiting in line at a counter, in this order:\n\n{context}\n\n"
TAIL = " Answer with the resulting list alone.\n"
INSTRUCTIONS = {
    "copy": "Copy the list exactly.",
    "sort": "Put the list into alphabetical order.",
    "reverse": "Turn the order of the list around.",
    "shuffle": "Put the list into a random order, different from this one.",
    "insert_index": '"{word}" joins the line at position {index}, counted from 0. Insert this name there.',
    "insert_random": '"{word}" joins the line somewhere. Insert this name at a random position.',
    "remove_index": "The person at position {index}, counted from 0, leaves. Remove this name.",
    "remove_random": "Somebody leaves. Remove one name, any.",
    "replace_index": '"{word}" takes the place of the person at position {index}, counted from 0. Replace that name.',
    "replace_random": '"{word}" takes the place of somebody. Replace one name, any.',
}


@dataclass(frozen=True)
class WaitingLine:
    """Questions on lists of full names, drawn as ParallelBench draws them (Kang et al. 2025, arXiv 2510.04767).

    Attributes:
        task: one of the ten.
        shortest, longest: names in a list; 15 and 15 for the benchmark's second set.
        n: questions, as many of each length.
        examples: worked ones before each question.
        source: a folder with a copy of ParallelBench, whose names and prompts are then read; the questions are the
            published ones. Without it names and prompts are this project's own, drawn by the same rule from as many
            names.
        strict: the reply is a list in exactly the right form.
        length: tokens of a reply, at most; the paper's.
    """

    task: TaskName = "copy"
    shortest: int = 3
    longest: int = 6
    n: int = 100
    examples: int = 1
    source: str | None = None
    strict: bool = False
    length: int = 32

    def __post_init__(self) -> None:
        check_fields(self, shortest="[2, inf)", longest="[shortest, inf)", n="[1, inf)", examples="[0, inf)")
        check_fields(self, length="[1, inf)")
        lengths = self.longest - self.shortest + 1
        if self.n % lengths:
            raise UserError(f"WaitingLine: n = {self.n}; it must be a multiple of the number of lengths, {lengths}")

    @property
    def label(self) -> str:
        size = "" if (self.shortest, self.longest) == (3, 6) else f" of {self.shortest} to {self.longest}"
        return f"waiting line: {self.task.replace('_', ' ')}{size}"

    @property
    def seed(self) -> int:
        """The seed of the task, which was created under a longer name where it has two kinds."""
        return seed_of(f"{self.task}_list" if "_" in self.task else self.task)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All n of them, ordered by the length of their lists."""
        first, last = (FIRST, LAST) if self.source is None else names_in(self.source)
        words = [f"{a} {b}" for a, b in product(first, last)]
        rng = random.Random(self.seed)
        lengths = self.longest - self.shortest + 1
        asked = buckets(self.drawn(rng, words), lengths, self.n // lengths)
        stream = self.drawn(rng, words)
        shown = [[next(stream) for _ in range(self.n)] for _ in range(self.examples)]
        return tuple(
            dataclasses.replace(q, messages=ask(q, self.prompt, [more[i] for more in shown]))
            for i, q in enumerate(asked)
        )

    @cached_property
    def template(self) -> str:
        if self.source is not None:
            return prompt_in(self.source, f"waiting_line/{self.task}")
        return HEAD + INSTRUCTIONS[self.task] + TAIL

    def prompt(self, question: Question) -> str:
        """Return a question in words."""
        return self.template.format(context=text_of(question.items), word=question.word, index=question.index)

    def drawn(self, rng: random.Random, words: list[str]) -> Iterator[Question]:
        """Yield questions without end: length, names, a new name, a position, in this order."""
        kind = self.task.partition("_")[0]
        while True:
            items = distinct(rng, words, rng.randint(self.shortest, self.longest))
            word, index, answer = None, None, expected(self.task, items)
            if kind in ("insert", "replace"):
                word = rng.choice([w for w in words if w not in items])
            if kind in ("insert", "remove", "replace"):
                index = rng.randint(0, len(items) - (kind != "insert"))
                answer = expected(f"{kind}_index", items, word, index)
            elif kind == "shuffle":
                answer = items[:]
                while answer == items:
                    rng.shuffle(answer)
            shown = index if self.task.endswith("_index") else None
            yield Question(tuple(items), text_of(answer or []), word, shown)

    def prompts(self, split: str = "test", n: int | None = None) -> list[Question]:
        """Return n of the questions, spread evenly over all lengths."""
        return choose(self.questions, split, n, "WaitingLine")

    def score(self, prompt: Question, reply: str) -> float:
        """Return 1 for a right answer, else 0."""
        items = parse(reply, self.strict)
        return float(items is not None and solves(self.task, prompt.items, items, prompt.word, prompt.index))


def distinct(rng: random.Random, words: list[str], length: int) -> list[str]:
    """Return names, drawn anew until no two share a first or a last name, as in the published questions."""
    while True:
        items = rng.sample(words, length)
        if all(len(set(part)) == length for part in zip(*(item.split() for item in items), strict=True)):
            return items
