"""A folder of pictures: one subfolder per class, or flat and without labels."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from gen.config.errors import UserError
from gen.config.reading import file_sha256, read_json
from gen.data.lib.archives import Files, PackedWords, is_plain, left_out, listed
from gen.data.lib.checksums import SUMS, check_sums
from gen.data.lib.decoding import SUFFIXES
from gen.data.lib.labels import LABELS_FILE, parse_label_file
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["Folder"]

BESIDE = (SUMS, LABELS_FILE)  # files that belong to the pictures


@dataclass(frozen=True)
class Folder(PictureSource):
    """Pictures (png, jpg, jpeg, webp, bmp) in class subfolders, in order of name, or all in one folder without labels.

    Class folders are searched to any depth, links included. Where EDM's dataset.json is there, as in the folders of gen
    sample, it gives the labels, and folders are no classes. Files of other kinds and hidden ones are left out, and a
    warning says how many. A SHA256SUMS in the folder is compared. Fields and reading are those of every source of
    pictures (gen.data.lib.pictures). Raises UserError, in one line, for missing, empty and mixed folders, for broken
    links, and for names that are not UTF-8 or hold control characters.
    """

    def contents(self, path: Path) -> Contents:
        """List a folder's pictures and classes.

        Args:
            path: the folder.
        """
        if not path.is_dir():
            raise UserError(f"{path} is {'a file' if path.exists() else 'not there'}; give a folder of pictures")
        files, stamps, others = _find(path)
        listed_labels = (path / LABELS_FILE).is_file()
        flat = len(files) if listed_labels else sum("/" not in file for file in files)
        if flat and flat < len(files):
            raise UserError(f"{path} holds {flat} pictures beside class folders: move them into one, or out")
        if not files:
            raise UserError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
        if (path / SUMS).is_file():
            check_sums(path, {path / file: file_sha256(path / file) for file in files})
        if others:
            warnings.warn(f"{path}: left out {others}", stacklevel=2)
        archive = Files(str(path), PackedWords(files), PackedWords(stamps))
        if listed_labels:
            where = path / LABELS_FILE
            return Contents(archive, parse_label_file(str(where), read_json(where), files))
        if flat:
            return Contents(archive)
        names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        label = {name: i for i, name in enumerate(names)}
        labels = [label[file.partition("/")[0]] for file in files]
        if empty := sorted(label.keys() - {names[i] for i in set(labels)}):
            raise UserError(
                f"class folder {path / empty[0]} holds no pictures ({', '.join(SUFFIXES)}): fill or remove it"
            )
        return Contents(archive, labels, tuple(names))


def _find(root: Path) -> tuple[list[str], list[str], str]:
    """Return the path in a folder and the stamp of every picture, and in words what else is there."""
    files, stamps, hidden, others, first = list[str](), list[str](), 0, 0, ""
    for file, status in listed(root):
        if file.startswith(".") or "/." in file:
            hidden += 1
        elif not file.lower().endswith(SUFFIXES):
            others += file not in BESIDE
        else:
            _check_file(os.path.join(root, file), status)  # noqa: PTH118 - a Path costs as much as all the rest here
            assert status is not None
            files.append(file)
            stamps.append(f"{status.st_size}-{status.st_mtime_ns}")
            continue
        first = first or ("" if file in BESIDE else file)
    return files, stamps, left_out(others, hidden, first)


def _check_file(path: str, status: os.stat_result | None) -> None:
    if not is_plain(path):
        raise UserError(f"{path!a}: the name is not UTF-8 or holds control characters; rename the file or folder")
    if status is None or not stat.S_ISREG(status.st_mode):
        kind = "a broken link" if status is None else "no regular file"
        raise UserError(f"{path} is {kind}: mend or remove it")
