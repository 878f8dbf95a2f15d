"""Tables of text: for a terminal, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape
from itertools import dropwhile

__all__ = ["aligned", "inert", "markdown", "markdown_text", "one_line"]

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also full-width ones


def aligned(lines: Sequence[Sequence[str]], left: Collection[int], rule: bool = True) -> list[str]:
    """Pad the cells of a table so that its columns are aligned.

    Args:
        lines: heads, and then rows of cells.
        left: columns that are aligned on the left; the others on the right.
        rule: whether there is a line under the heads.

    Returns:
        Lines of text.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if i in left else ">" for i in range(len(widths))]
    padded = [[f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)] for line in lines]
    if rule:
        padded.insert(1, ["-" * w for w in widths])
    return ["  ".join(line).rstrip() for line in padded]


def markdown(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Return a table as Markdown; no word in it can be markup.

    Args:
        lines: heads, and then rows of cells.
        left: columns that are aligned on the left; the others on the right.

    Returns:
        Lines of Markdown.
    """
    text = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
    text.insert(1, "|" + "|".join(":--" if i in left else "--:" for i in range(len(lines[0]))) + "|")
    return text


def markdown_text(text: str) -> str:
    """Return words that can be no markup: neither a cell's end nor a link, a picture or HTML.

    Args:
        text: anything.
    """
    return re.sub(r"([\\|`*\[\]])", r"\\\1", escape(one_line(text), quote=False))


def one_line(text: object) -> str:
    """Return text on one line, printable characters only.

    Args:
        text: anything.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def inert(cell: object) -> object:
    """Return a cell of a csv file, where text that a spreadsheet would run as a formula begins with a quotation mark.

    Spreadsheets skip blanks and what is invisible before it, and take full-width signs too.

    Args:
        cell: text or a number.
    """
    if not isinstance(cell, str):
        return cell
    seen = "".join(dropwhile(lambda c: c.isspace() or not c.isprintable(), cell))
    return f"'{cell}" if seen.startswith(FORMULA) or cell.startswith(("\t", "\r", "\n")) else cell
