"""Format numbers of the files that gen writes: those of a newer gen are refused in one line, never misread."""

from __future__ import annotations

from collections.abc import Mapping

from gen.config.errors import UserError, shown

__all__ = ["NEWEST", "NewerFormat", "check_format"]

NEWEST = {  # number by kind: raised when a file of an older gen would be misread
    "bench": 1,
    "checkpoint": 1,
    "decoding record": 2,
    "latents": 1,
    "record": 3,
    "run": 1,
    "search": 1,
    "statistics": 1,
}


class NewerFormat(UserError):
    """A file that a newer version of gen wrote: it is whole, but not for this one."""


def check_format(value: object, newest: int, source: object, key: str = "format") -> None:
    """Check the format of a file of gen's.

    Args:
        value: its content, JSON values.
        newest: the number of the format that is read.
        source: its name in messages, such as a path.
        key: of the number in the content.

    Raises:
        NewerFormat: for a higher number.
        UserError: for any other.
    """
    given = value.get(key) if isinstance(value, Mapping) else None
    if type(given) is int and given > newest:
        raise NewerFormat(
            f"{source} was written by a newer gen ({key} {given}; this one reads up to {newest}): upgrade, "
            "pip install --upgrade gen-diffusion"
        )
    if type(given) is not int or given != newest:
        said = f"{key} {shown(given)}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise UserError(f"{source} is none that gen reads: {said}; allowed: {key} {newest}")
