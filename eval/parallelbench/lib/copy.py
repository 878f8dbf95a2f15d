"""Names and prompts of a copy of ParallelBench on this machine. None of it is in this project.

Both are in YAML files of one simple form each, read here without a YAML parser, which may build any object.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gen.config.errors import UserError
from gen.config.reading import read_text

__all__ = ["NAMES", "fold", "names_in", "prompt_in"]

# sha256 of the names that the published questions were drawn from, the first ones before the last ones, line by line
NAMES = "e7eb5a198ee47b860484b20a649e9383c7a5bc4d151b5f4f37cd511a4bf08a32"


def names_in(folder: str | Path) -> tuple[list[str], list[str]]:
    """Return first and last names, in the order of first_last_names.yaml.

    Args:
        folder: with a copy of ParallelBench.

    Raises:
        UserError: if they are not the published ones.
    """
    (path,) = _found(folder, "first_last_names.yaml")[:1]
    first, last = list[str](), list[str]()
    lists, into = [first, last], first
    for number, line in enumerate(read_text(path).splitlines(), 1):
        entry = re.fullmatch(r"(- |  )- (\S.*?) *", line)
        if entry is None:
            if line.strip():
                raise UserError(f"{path}, line {number}: {line!r}, expected a name of one of two lists")
            continue
        if entry[1] == "- ":
            if not lists:
                raise UserError(f"{path}, line {number}: a third list; there are first and last names")
            into = lists.pop(0)
        into.append(entry[2])
    if hashlib.sha256("\n".join([*first, *last]).encode()).hexdigest() != NAMES:
        raise UserError(
            f"{path} holds {len(first)} first and {len(last)} last names that are not those of the published benchmark"
        )
    return first, last


def prompt_in(folder: str | Path, task: str) -> str:
    """Return the prompt of a task, with {context}, {word} and {index} to be filled in.

    Args:
        folder: with a copy of ParallelBench.
        task: such as "waiting_line/copy".

    Raises:
        UserError: if there is none.
    """
    for path in _found(folder, "task_config.yaml"):
        block = re.search(rf"(?m)^{re.escape(task)}:\n((?:  .*\n|\n)*)", read_text(path) + "\n")
        prompt = block and re.search(r"(?m)^  prompt: ('(?:[^']|'')*'|[^'\"\n].*(?:\n    .*)*)", block[1])
        if prompt:
            return fold(prompt[1]).replace("\\n", "\n")
    raise UserError(f"{folder} has no task_config.yaml with a prompt of {task}")


def fold(scalar: str) -> str:
    """Return the text of a YAML scalar over several lines: a line break is a space, an empty line is a line break.

    Args:
        scalar: plain or in single quotes.
    """
    quoted = scalar.startswith("'")
    first, *rest = (scalar[1:-1].replace("''", "'") if quoted else scalar.rstrip()).split("\n")
    text, empty = first.rstrip() if rest else first, 0
    for i, line in enumerate(rest):
        inner = line.lstrip() if i == len(rest) - 1 else line.strip()
        if not inner and i < len(rest) - 1:
            empty += 1
        else:
            text += ("\n" * empty or " ") + inner
            empty = 0
    return text


def _found(folder: str | Path, name: str) -> list[Path]:
    paths = sorted(Path(folder).rglob(name))
    if not paths:
        raise UserError(f"{folder} holds no {name}; source is a folder with a copy of furiosa-ai/ParallelBench")
    return paths
