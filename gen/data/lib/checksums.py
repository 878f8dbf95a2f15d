"""Checksums of files that no format protects: a SHA256SUMS beside them, as `sha256sum * > SHA256SUMS` writes it.

Taking the sums of what is not read anyway costs a second for 1.6 GiB (one core of 2.5 GHz, 2026-11-30).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gen.config.errors import UserError
from gen.config.reading import file_sha256, read_lines

__all__ = ["SUMS", "check_sums"]

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def check_sums(path: Path, files: Mapping[Path, str | None]) -> None:
    """Compare files with the SHA256SUMS of their folder; without one, nothing is checked.

    Args:
        path: the folder of all of them, which must then be those that are listed; or one file, which may be listed.
        files: sha256 (hex) by file; None to read the file.

    Raises:
        UserError: names the first file that is damaged, missing or not listed.
    """
    root = path if path.is_dir() else path.parent
    sums = root / SUMS
    if not sums.is_file():
        return
    listed = dict[Path, str]()
    for number, line in enumerate(read_lines(sums), 1):
        if not (match := LINE.fullmatch(line)):
            raise UserError(f"{sums}, line {number}: expected a sha256, two spaces and a name, as sha256sum writes")
        listed[root / match[2]] = match[1].lower()
    if path.is_dir():
        for file in listed:
            if not file.exists():
                raise UserError(f"{file} is not there, and {sums} lists it: put it back, or remove its line")
        for file in files:
            if file not in listed:
                raise UserError(f"{file} is not listed in {sums}: remove one of the two, or add its line")
    for file, sha256 in files.items():
        if file in listed and (sha256 or file_sha256(file)) != listed[file]:
            raise UserError(f"{file} is damaged or was changed: its sha256 is not the one in {sums}")
