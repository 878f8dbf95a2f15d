"""A zip archive of pictures, read without unpacking it."""

from __future__ import annotations

import json
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gen.config.errors import UserError
from gen.config.reading import parse_json
from gen.data.lib.archives import MAX_BYTES, PackedWords, Spans, is_plain, left_out
from gen.data.lib.cache_file import CacheFile
from gen.data.lib.checksums import check_sums
from gen.data.lib.decoding import SUFFIXES
from gen.data.lib.labels import LABELS_FILE, folder_labels, parse_label_file
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["Zip"]

ENTRY = 6  # words of a picture's line before its name: offset, bytes in the zip, inflated, of the file, label, CRC
STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Zip(PictureSource):
    """Pictures (png, jpg, jpeg, webp, bmp) of one .zip file, in order of name: that of EDM2's dataset tool, or any.

    The archive's list is read once and remembered, until its size or time of change is another.
    Labels are those of EDM's dataset.json if it is there, else the folders in the archive, if there are several and not
    EDM's numbered ones; a folder that holds everything is passed over. Files of other kinds and hidden ones are left
    out, and a warning says how many. A SHA256SUMS beside the file that lists it is compared. Fields and reading are
    those of every source of pictures (gen.data.lib.pictures). Raises UserError, in one line, for what is no zip, is
    encrypted or packed by other methods than deflate, or unpacks to more than 256 MB a picture.
    """

    def contents(self, path: Path) -> Contents:
        """List an archive's pictures and labels.

        Args:
            path: the .zip file.
        """
        if not path.is_file():
            raise UserError(f"{path} is {'a folder' if path.exists() else 'not there'}; give a .zip file of pictures")
        status, cache = path.stat(), CacheFile("zip listing", str(path))
        about = json.dumps([status.st_size, status.st_mtime_ns, status.st_ctime_ns])
        lines = cache.read()
        if lines[:1] != [about]:
            lines = [about, *_listed(path)]
            cache.write(lines)
        check_sums(path, {path: None})
        return _contents(path, lines[1:], status.st_mtime_ns)


def _listed(path: Path) -> list[str]:
    """Return an archive's list: what was left out and the classes, then a line for each picture, as ENTRY says."""
    try:
        with zipfile.ZipFile(path) as opened:
            entries = sorted(opened.infolist(), key=lambda entry: entry.filename)
            pictures, others, hidden = _pictures(path, entries)
            labels, names = _labels(path, opened, [entry.filename for entry in pictures])
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a zip: {' '.join(str(error).split())}") from error
    lines = [json.dumps({"others": others, "hidden": hidden, "names": names, "labelled": labels is not None})]
    for row, entry in enumerate(pictures):
        size, label = entry.file_size if entry.compress_type else 0, 0 if labels is None else labels[row]
        numbers = f"{entry.header_offset} {entry.compress_size} {size} {entry.file_size} {label}"
        lines.append(f"{numbers} {entry.CRC:08x} {entry.filename}")
    return lines


def _contents(path: Path, lines: list[str], changed: int) -> Contents:
    """Return what a list says; a warning tells what was left out."""
    about = json.loads(lines[0])
    if about["others"] or about["hidden"]:
        warnings.warn(f"{path}: left out {left_out(about['others'], about['hidden'])}", stacklevel=3)
    rows = [line.split(" ", ENTRY) for line in lines[1:]]
    starts, lengths, sizes, labels = (np.array([int(row[k]) for row in rows], np.int64) for k in (0, 1, 2, 4))
    spans = Spans(
        [str(path)],
        PackedWords(row[ENTRY] for row in rows),
        PackedWords(f"{row[0]}-{row[3]}-{row[5]}-{changed}" for row in rows),
        np.zeros(len(rows), np.int32),
        starts,
        lengths,
        sizes,
        zipped=True,
    )
    return Contents(spans, labels.tolist() if about["labelled"] else None, tuple(about["names"]))


def _pictures(path: Path, entries: list[zipfile.ZipInfo]) -> tuple[list[zipfile.ZipInfo], int, int]:
    """Return the entries that are pictures, and how many others and hidden ones there are."""
    files = [entry for entry in entries if not entry.is_dir()]
    shown = [e for e in files if not any(part.startswith((".", "__MACOSX")) for part in e.filename.split("/"))]
    pictures = [entry for entry in shown if entry.filename.lower().endswith(SUFFIXES)]
    if not pictures:
        raise UserError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    for entry in pictures:
        if not is_plain(entry.filename):
            raise UserError(f"{path}: {entry.filename!a}: the name is not UTF-8 or holds control characters; rename it")
        if entry.flag_bits & 1 or entry.compress_type not in STORED_OR_DEFLATED:
            packed = "is encrypted, or packed by another method than deflate: pack it anew"
            raise UserError(f"{path}: {entry.filename!a} {packed}")
        if entry.file_size > MAX_BYTES:
            size = f"has {entry.file_size:,} bytes; at most {MAX_BYTES:,} are read"
            raise UserError(f"{path}: {entry.filename!a} {size}")
    others = len(shown) - len(pictures) - sum(entry.filename == LABELS_FILE for entry in shown)
    return pictures, others, len(files) - len(shown)


def _labels(path: Path, opened: zipfile.ZipFile, names: list[str]) -> tuple[list[int] | None, tuple[str, ...]]:
    if LABELS_FILE not in opened.namelist():
        return folder_labels(names)
    where = f"{path}: {LABELS_FILE}"
    if opened.getinfo(LABELS_FILE).file_size > MAX_BYTES:
        raise UserError(f"{where} has more than {MAX_BYTES:,} bytes: refused")
    try:
        text = opened.read(LABELS_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no UTF-8") from error
    return parse_label_file(where, parse_json(text, where), names), ()
