"""A zip archive of pictures, read without unpacking it."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gen.config.errors import UserError
from gen.config.reading import parse_json
from gen.data.lib.archives import MAX_BYTES, PackedWords, Spans, is_plain
from gen.data.lib.checksums import check_sums
from gen.data.lib.decoding import SUFFIXES
from gen.data.lib.labels import LABELS_FILE, folder_labels, parse_label_file
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["Zip"]

STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Zip(PictureSource):
    """Pictures (png, jpg, jpeg, webp, bmp) of one .zip file, in order of name: that of EDM2's dataset tool, or any.

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
        try:
            with zipfile.ZipFile(path) as opened:
                entries = sorted(opened.infolist(), key=lambda entry: entry.filename)
                pictures = _pictures(path, entries)
                names = [entry.filename for entry in pictures]
                labels, label_names = _labels(path, opened, names)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read as a zip: {' '.join(str(error).split())}") from error
        check_sums(path, {path: None})
        return Contents(_spans(path, pictures), labels, label_names)


def _pictures(path: Path, entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the entries that are pictures, and warn of the others."""
    files = [entry for entry in entries if not entry.is_dir()]
    shown = [e for e in files if not any(part.startswith((".", "__MACOSX")) for part in e.filename.split("/"))]
    pictures = [entry for entry in shown if entry.filename.lower().endswith(SUFFIXES)]
    if not pictures:
        raise UserError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    for entry in pictures:
        where = f"{path}: {entry.filename!a}"
        if not is_plain(entry.filename):
            raise UserError(f"{where}: the name is not UTF-8 or holds control characters; rename it")
        if entry.flag_bits & 1 or entry.compress_type not in STORED_OR_DEFLATED:
            raise UserError(f"{where} is encrypted, or packed by another method than deflate: pack it anew")
        if entry.file_size > MAX_BYTES:
            raise UserError(f"{where} has {entry.file_size:,} bytes; at most {MAX_BYTES:,} are read")
    others = len(shown) - len(pictures) - sum(entry.filename == LABELS_FILE for entry in shown)
    if others or len(shown) < len(files):
        hidden = len(files) - len(shown)
        warnings.warn(f"{path}: left out {others} files of other kinds and {hidden} hidden ones", stacklevel=3)
    return pictures


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


def _spans(path: Path, entries: list[zipfile.ZipInfo]) -> Spans:
    changed = path.stat().st_mtime_ns
    return Spans(
        [str(path)],
        PackedWords(entry.filename for entry in entries),
        PackedWords(f"{entry.header_offset}-{entry.file_size}-{entry.CRC:08x}-{changed}" for entry in entries),
        np.zeros(len(entries), np.int32),
        np.array([entry.header_offset for entry in entries], np.int64),
        np.array([entry.compress_size for entry in entries], np.int64),
        np.array([entry.file_size if entry.compress_type else 0 for entry in entries], np.int64),
        zipped=True,
    )
