"""Latin square: a grid with every symbol once in each row and column (ParallelBench)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase, digits

from gen.config.fields import check_fields
from gen.eval.parallelbench.lib.copy import prompt_in
from gen.eval.parallelbench.lib.rules import square
from gen.eval.parallelbench.lib.sample import Question, ask, choose, seed_of

__all__ = ["LatinSquare"]

PROMPT = (
    "Write a Latin square of size {size} with the symbols {symbols}, as lines of symbols with commas between them. "
    "Answer with these lines alone."
)


@dataclass(frozen=True)
class LatinSquare:
    """A square of `size` symbols, drawn as ParallelBench draws it: any of the many right ones is right.

    Attributes:
        size: 4 is the published set.
        n: questions.
        examples: worked ones before each.
        source: a folder with a copy of ParallelBench, whose prompt is then read; else it is this project's own.
        strict: no line has a cell too many.
        length: tokens of a reply, at most.
    """

    size: int = 4
    n: int = 100
    examples: int = 1
    source: str | None = None
    strict: bool = False
    length: int = 32

    def __post_init__(self) -> None:
        check_fields(self, size="[2, 36]", n="[1, inf)", examples="[0, inf)", length="[1, inf)")

    @property
    def label(self) -> str:
        return f"latin square of {self.size}"

    @property
    def seed(self) -> int:
        return seed_of(f"latin_square_n{self.size}")

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All n of them; the worked examples are drawn after the last."""
        stream = self.drawn(random.Random(self.seed))
        rows = [[next(stream) for _ in range(self.n)] for _ in range(1 + self.examples)]
        return tuple(
            dataclasses.replace(q, messages=ask(q, self.prompt, [more[i] for more in rows[1:]]))
            for i, q in enumerate(rows[0])
        )

    @cached_property
    def template(self) -> str:
        return PROMPT if self.source is None else prompt_in(self.source, f"puzzle/latin_square_n{self.size}")

    def prompt(self, question: Question) -> str:
        """Return a question in words."""
        return self.template.format(size=self.size, symbols=f"[{', '.join(question.items)}]")

    def drawn(self, rng: random.Random) -> Iterator[Question]:
        """Yield questions without end: symbols, then the rows of the cyclic square shuffled, then its columns."""
        while True:
            symbols = rng.sample([*ascii_uppercase, *digits], self.size)
            rows = [symbols[i:] + symbols[:i] for i in range(self.size)]
            rng.shuffle(rows)
            columns = list(zip(*rows, strict=True))
            rng.shuffle(columns)
            text = "\n".join(",".join(row) for row in zip(*columns, strict=True))
            yield Question(tuple(symbols), text)

    def prompts(self, split: str = "test", n: int | None = None) -> list[Question]:
        """Return n of the questions."""
        return choose(self.questions, split, n, "LatinSquare")

    def score(self, prompt: Question, reply: str) -> float:
        """Return 1 for a Latin square of the symbols asked for, else 0."""
        return float(square(reply, prompt.items, self.strict))
