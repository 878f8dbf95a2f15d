"""Sudoku of 4 x 4: every digit once in each row, column and box, and one solution (ParallelBench)."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from gen.config.fields import check_fields
from gen.eval.parallelbench.lib.sample import Question, ask, choose, seed_of

__all__ = ["Sudoku"]

PROMPT = (
    "Solve this Sudoku of 4 x 4: put a digit from 1 to 4 for each _, so that every row, every column and every 2 x 2 "
    "box has each digit once. Answer with the four lines alone.\n\n{puzzle}"
)
Grid = tuple[tuple[int, ...], ...]  # four rows of four digits, 0 for a hole


@dataclass(frozen=True)
class Sudoku:
    """Puzzles with one solution, which the right reply holds.

    ParallelBench reads its own from a file of Dream's authors; these are drawn here, by the same rules.

    Attributes:
        holes: of each puzzle; 12 leaves four digits, fewer never fix the solution.
        n: questions.
        examples: worked ones before each.
        strict: the reply is the four lines alone; else lines that do not hold four digits are skipped, and spaces and
            commas do not count.
        length: tokens of a reply, at most.
    """

    holes: int = 8
    n: int = 100
    examples: int = 1
    strict: bool = False
    length: int = 32

    def __post_init__(self) -> None:
        check_fields(self, holes="[1, 12]", n="[1, inf)", examples="[0, inf)", length="[1, inf)")

    @property
    def label(self) -> str:
        return f"sudoku with {self.holes} holes"

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All n of them; the worked examples are drawn after the last."""
        stream = drawn(random.Random(seed_of(f"sudoku_n4_{self.holes}")), self.holes)
        rows = [[next(stream) for _ in range(self.n)] for _ in range(1 + self.examples)]
        return tuple(
            dataclasses.replace(q, messages=ask(q, self.prompt, [more[i] for more in rows[1:]]))
            for i, q in enumerate(rows[0])
        )

    def prompt(self, question: Question) -> str:
        """Return a question in words."""
        return PROMPT.format(puzzle="\n".join(question.items))

    def prompts(self, split: str = "test", n: int | None = None) -> list[Question]:
        """Return n of the questions."""
        return choose(self.questions, split, n, "Sudoku")

    def score(self, prompt: Question, reply: str) -> float:
        """Return 1 for the solution, else 0."""
        lines = [line.strip() for line in reply.strip().split("\n")]
        if not self.strict:
            lines = ["".join(re.findall(r"\d", line)) for line in lines]
            lines = [line for line in lines if len(line) == 4]
        return float("\n".join(lines) == prompt.example)


def drawn(rng: random.Random, holes: int) -> Iterator[Question]:
    """Yield puzzles without end: a random grid, and holes one after another that leave it the only solution.

    Args:
        rng: of all draws.
        holes: of each puzzle.
    """
    grids, cells = solutions(((0,) * 4,) * 4), list(product(range(4), repeat=2))
    while True:
        grid, kept, left = rng.choice(grids), cells, holes
        for hole in rng.sample(cells, 16):
            rest = [cell for cell in kept if cell != hole]
            others = (g for g in grids if g is not grid and all(g[i][j] == grid[i][j] for i, j in rest))
            if left and next(others, None) is None:
                kept, left = rest, left - 1
        if not left:
            puzzle = tuple(tuple(v if (i, j) in kept else 0 for j, v in enumerate(row)) for i, row in enumerate(grid))
            yield Question(text_of(puzzle), "\n".join(text_of(grid)))


def solutions(puzzle: Grid) -> list[Grid]:
    """Return all grids that solve a puzzle, in the order of their digits.

    Args:
        puzzle: 0 stands for a hole.
    """
    holes = [(i, j) for i, j in product(range(4), repeat=2) if not puzzle[i][j]]
    if not holes:
        return [puzzle]
    i, j = holes[0]
    box = [puzzle[a][b] for a in range(i // 2 * 2, i // 2 * 2 + 2) for b in range(j // 2 * 2, j // 2 * 2 + 2)]
    taken = {*puzzle[i], *(row[j] for row in puzzle), *box}
    found = list[Grid]()
    for digit in sorted({1, 2, 3, 4} - taken):
        line = tuple(digit if b == j else v for b, v in enumerate(puzzle[i]))
        found += solutions((*puzzle[:i], line, *puzzle[i + 1 :]))
    return found


def text_of(grid: Grid) -> tuple[str, ...]:
    """Return the lines of a grid, _ for a hole.

    Args:
        grid: four rows.
    """
    return tuple("".join(str(v or "_") for v in row) for row in grid)
