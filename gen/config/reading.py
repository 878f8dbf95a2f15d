"""Reading of JSON, TOML and lines of text: one parser for all of the project, strict and bounded in size.

A file may be anybody's. What is no strict JSON (NaN, infinity, 1e999, a key twice, half a surrogate pair), is nested
deeper or has longer numbers than any file of ours is refused in one line, and so is a file or a line that is too large,
before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gen.config.errors import UserError

__all__ = [
    "decoded", "file_sha256", "numbered_lines", "package_file", "parse_json", "read_json", "read_lines", "read_text",
    "read_toml",
]  # fmt: skip

MAX_BYTES = 256 * 2**20  # of a file: a record with pictures has 1 MB
MAX_LINE = 64 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 40


def parse_json(text: str, source: object, constants: bool = False) -> Any:
    """Parse strict JSON.

    Args:
        text: the JSON.
        source: where it is from, for the message.
        constants: True lets Infinity, -Infinity and NaN through, which the configs of diffusers hold.

    Raises:
        UserError: in one line, for anything else.
    """
    decoder = json.JSONDecoder(
        parse_int=_integer,
        parse_float=_number,
        parse_constant=float if constants else _number,
        object_pairs_hook=_object,
    )
    try:
        value = decoder.decode(text)
        _check(value)
    except RecursionError:
        raise UserError(f"{source} is no JSON of ours: nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is no JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise UserError(f"{source} is no JSON: {' '.join(str(error).split())}") from None
    return value


def read_json(path: Path, constants: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        constants: see `parse_json`.

    Raises:
        UserError: names the file if it is missing, too large, or no strict JSON.
    """
    return parse_json(read_text(path), path, constants)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_file(package: str, inner: str) -> Path | None:
    """Return the path of a file within an installed package, which is not imported; None if it is not there.

    Args:
        package: its import name.
        inner: path within it.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for folder in folders if (file := Path(folder, inner)).is_file()), None)


def read_toml(path: Path) -> Any:
    """Read a TOML file as JSON values.

    Args:
        path: the file.

    Raises:
        UserError: names the file if it is missing, too large, or no TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {' '.join(str(error).split())}") from None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, without a byte order mark.

    Args:
        path: the file.

    Raises:
        UserError: names the file if it is missing, too large, or no text.
    """
    size = _size(path)
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    return decoded(path.read_bytes(), path)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, without line ends and without a byte order mark.

    Args:
        path: the file, of any size.

    Raises:
        UserError: names the file, and the line that is too long or no text.
    """
    _size(path)
    with path.open("rb") as file:
        for number, line in numbered_lines(file, path):
            text = decoded(line.rstrip(b"\r\n"), f"{path}, line {number}")
            yield text if number > 1 else text.removeprefix("\ufeff")


def numbered_lines(file: IO[bytes], source: object, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of an open file with their numbers, line ends included.

    Args:
        file: open for reading, at the beginning of a line.
        source: names it, for the message.
        first: number of the first line.

    Raises:
        UserError: for a line that is too long.
    """
    number = first
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise UserError(f"{source}, line {number} has more than {MAX_LINE:,} bytes")
        yield number, line
        number += 1


def _size(path: Path) -> int:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(about.st_mode):  # a pipe would never end
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, expected a file")
    return about.st_size


def decoded(content: bytes, source: object) -> str:
    """Return text of UTF-8, without a byte order mark.

    Args:
        content: the bytes.
        source: where they are from, for the message.

    Raises:
        UserError: if they are no text.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no UTF-8 text: {error.reason} at byte {error.start}") from None


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    if len(text) > 20 * MAX_DIGITS or not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:MAX_DIGITS]} is no finite number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice in one object")
    return value


def _check(value: object) -> None:
    """Check depth and text, level by level: values of a level are those inside the level above."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        inner: list[object] = []
        for v in level:
            if isinstance(v, dict):
                inner += [*v, *v.values()]
            elif isinstance(v, list):
                inner += v
            elif isinstance(v, str):
                v.encode()  # half a surrogate pair is a ValueError
        level = inner
