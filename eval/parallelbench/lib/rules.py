"""Right answers to list tasks, by ParallelBench's metrics. Items are anything that compares: names, ids."""

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
    """Return the one right answer; None for tasks that have several.

    Args:
        task: one of TASKS.
        items: the list.
        word: what is inserted, or replaces.
        index: where, counted from 0.
    """
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
    """Return whether a reply is a right answer to the task: the right one, or one of several.

    shuffle: the same items in another order. insert_random: the items with the word somewhere. remove_random: the items
    without one of them. replace_random: the items with the word instead of one of them.

    Args:
        task: one of TASKS.
        items: the list.
        reply: the list that was answered.
        word: what is inserted, or replaces.
        index: where, counted from 0.
    """
    given, answer = list(items), list(reply)
    right = expected(task, given, word, index)
    if right is not None:
        return answer == right
    if task == "shuffle":
        return answer != given and Counter(answer) == Counter(given)
    if task == "remove_random":
        gone = [item for item in given if item not in answer]
        return len(answer) == len(given) - 1 and len(gone) == 1 and answer == [v for v in given if v != gone[0]]
    if word not in answer:
        return False
    at = answer.index(word)
    rest = given if task == "insert_random" else given[:at] + given[at + 1 :]
    return answer[:at] + answer[at + 1 :] == rest and len(answer) == len(given) + (task == "insert_random")


def text_of(items: Sequence[Any]) -> str:
    """Write a list as prompts and answers do: ["Ada Moss", "Bo Lund"].

    Args:
        items: of the list.
    """
    return '["' + '", "'.join(str(item) for item in items) + '"]'


def parse(text: str, strict: bool = False) -> list[str] | None:
    """Return the items of the last list in a text, with or without quotes; of the whole text without brackets.

    Args:
        text: a reply.
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
    """Return whether the first lines of a text that hold all symbols and no others are a Latin square.

    Args:
        text: a reply.
        symbols: of the square.
        strict: each such line holds every symbol once; else, as in the public code, cells beyond the last column are
            not looked at.
    """
    size, wanted = len(symbols), set(symbols)
    rows = [[cell.strip() for cell in line.split(",")] for line in text.split("\n")]
    rows = [row for row in rows if set(row) == wanted][:size]
    if len(rows) < size or (strict and any(len(row) != size for row in rows)):
        return False
    return all(set(column) == wanted for column in zip(*rows, strict=False))
