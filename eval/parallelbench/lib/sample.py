"""A question of a benchmark, and the seeds that ParallelBench draws its questions from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gen.config.errors import UserError

__all__ = ["Question", "ask", "buckets", "choose", "seed_of"]


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        items: what it is about, a list of names or of symbols.
        example: a right answer.
        word, index: what else it says.
        messages: the conversation so far, {"role": "user" or "assistant", "content": text}, worked examples first.
    """

    items: tuple[str, ...]
    example: str
    word: str | None = None
    index: int | None = None
    messages: tuple[dict[str, str], ...] = field(default=())

    @property
    def text(self) -> str:
        """The conversation as plain text, for models without a chat template."""
        return "".join(message["content"].rstrip("\n") + "\n" for message in self.messages)


def seed_of(name: str) -> int:
    """Return the seed of a task: (sha256(name) + 42) mod 65535.

    Args:
        name: that it was created under.
    """
    return (int(hashlib.sha256(name.encode()).hexdigest(), 16) + 42) % 65535


def buckets(
    drawn: Iterator[Any], wanted: int, each: int, size: Callable[[Any], int] = lambda q: len(q.items)
) -> list[Any]:
    """Return as many questions of each length, the shorter ones first.

    Drawing stops with the question that fills the last of the wanted lengths; those of a length that is full are thrown
    away.

    Args:
        drawn: questions without end.
        wanted: number of lengths; the ones that are full first.
        each: questions of a length.
        size: question -> its length.
    """
    kept: dict[int, list[Any]] = {}
    for question in drawn:
        members = kept.setdefault(size(question), [])
        if len(members) < each:
            members.append(question)
        full = sorted(n for n, some in kept.items() if len(some) == each)
        if len(full) == wanted:
            return [q for n in full for q in kept[n]]
    raise RuntimeError("the questions ran out")


def ask(question: Any, prompt: Callable[[Any], str], examples: Sequence[Any]) -> tuple[dict[str, str], ...]:
    """Return the messages of a question, after worked examples with their answers.

    Args:
        question: to be asked.
        prompt: question -> its words.
        examples: worked ones.
    """
    turns: list[dict[str, str]] = []
    for shown in examples:
        turns += [{"role": "user", "content": prompt(shown)}, {"role": "assistant", "content": shown.example}]
    return (*turns, {"role": "user", "content": prompt(question)})


def choose(questions: Sequence[Question], split: str, n: int | None, what: str) -> list[Question]:
    """Choose some of a benchmark's questions, spread evenly over them, for they are ordered by length.

    Args:
        questions: all of them.
        split: "test".
        n: how many; None for all.
        what: the benchmark's name, for messages.

    Raises:
        UserError: for another split, or more than there are.
    """
    if split != "test":
        raise UserError(f"{what}: split {split!r}; it has a test split only")
    count = len(questions) if n is None else n
    if not 1 <= count <= len(questions):
        raise UserError(f"{what}: {count} questions; it has {len(questions)}")
    return [questions[i * len(questions) // count] for i in range(count)]
