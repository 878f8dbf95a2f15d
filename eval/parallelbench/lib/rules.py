"""Whether a reply solves a list task, by ParallelBench's metrics. Items are anything that compares: names, ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["TASKS", "expected", "parse", "solves", "square", "text_of"]

TASKS = (
    "copy",
    "sort",
    "reverse",
    "shuffle",
    "insert_index",
    "insert_random",
    "remove_index",
    "remove_random",
    "replace_index",
    "replace_random",
)


def expected(task: str, items: Sequence[Any], word: Any = None, index: int | None = None) -> list[Any] | None:
    """The one right answer; None for tasks that have several."""
    given = list(items)
    if task == "sort":
        return sorted(given)
    if task == "reverse":
        return given[::-1]
    if task.endswith("_index") and index is not None:
        middle = [] if task == "remove_index" else [word]
        return given[:index] + middle + given[index + (task != "insert_index") :]
    return given if task == "copy" else None


def solves(task: str, items: Sequence[Any], reply: Sequence[Any], word: Any = None, index: int | None = None) -> bool:
    """Whether the reply is a right answer to the task: the right one, or one of several.

    shuffle: the same items in another order. insert_random: the items with the word somewhere. remove_random: the items
    without one of them. replace_random: the items with the word in the place of one of them.
    """
    given, told = list(items), list(reply)
    right = expected(task, given, word, index)
    if right is not None:
        return told == right
    if task == "shuffle":
        return told != given and Counter(told) == Counter(given)
    if task == "remove_random":
        gone = [item for item in given if item not in told]
        return len(told) == len(given) - 1 and len(gone) == 1 and told == [v for v in given if v != gone[0]]
    if word not in told:
        return False
    at = told.index(word)
    rest = given if task == "insert_random" else given[:at] + given[at + 1 :]
    return told[:at] + told[at + 1 :] == rest and len(told) == len(given) + (task == "insert_random")


def text_of(items: Sequence[Any]) -> str:
    """["Ada Moss", "Bo Lund"]: how lists are written in prompts and answers."""
    return '["' + '", "'.join(str(item) for item in items) + '"]'


def parse(text: str, strict: bool = False) -> list[str] | None:
    """The items of the last list in a text, with or without quotes; of the whole text where there are no brackets.

    strict: None unless there are both brackets, every item in double quotes, and exactly ", " between them.
    """
    _, opened, after = text.rpartition("[")
    inside, closed, _ = after.partition("]")
    if not strict:
        return [item.strip('" ') for item in inside.split(",") if item.strip()]
    items = inside.split(", ")
    quoted = all(len(item) > 1 and item[0] == item[-1] == '"' and '"' not in item[1:-1] for item in items)
    return [item[1:-1] for item in items] if opened and closed and quoted else None


def square(text: str, symbols: Sequence[str], strict: bool = False) -> bool:
    """Whether the lines of a text that hold all symbols and no others, the first of them, are a Latin square.

    strict: each such line holds every symbol once; else, as in the public code, cells beyond the last column are not
    looked at.
    """
    size, wanted = len(symbols), set(symbols)
    rows = [[cell.strip() for cell in line.split(",")] for line in text.split("\n")]
    rows = [row for row in rows if set(row) == wanted][:size]
    if len(rows) < size or (strict and any(len(row) != size for row in rows)):
        return False
    return all(set(column) == wanted for column in zip(*rows, strict=False))
