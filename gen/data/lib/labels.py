"""Labels of pictures in archives and lists: numbers, names of classes, or folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from gen.config.errors import UserError, nearest, shown
from gen.data.lib.tensors import check_labels

__all__ = ["LABELS_FILE", "folder_labels", "named_labels", "parse_label_file"]

LABELS_FILE = "dataset.json"  # of EDM's and EDM2's folders and archives: {"labels": [[name, label], ...]}
EDM_FOLDER = re.compile(r"\d{5}")  # of EDM's archives: no class


def parse_label_file(where: str, listed: object, names: Sequence[str]) -> list[int] | None:
    """Return the labels that EDM's dataset.json gives to pictures; None if it gives none.

    Args:
        where: names the file, for errors.
        listed: its content.
        names: of the pictures.

    Raises:
        UserError: for another layout, and for a picture that it does not list.
    """
    rows = listed.get("labels", ()) if isinstance(listed, Mapping) else ()
    if rows is None:
        return None
    pairs = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 2 for row in rows)
    if not rows or not pairs or not all(type(label) is int for _, label in rows):
        raise UserError(f'{where}: expected {{"labels": [[name, label], ...]}} with whole numbers, or null for none')
    known: dict[str, int] = dict(rows)
    if missing := next((name for name in names if name not in known), None):
        raise UserError(f"{where} has no label of {missing}. {nearest(missing, known)}")
    labels = [known[name] for name in names]
    check_labels(where, torch.tensor(labels), None)
    return labels


def folder_labels(names: Sequence[str]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Return the labels, and the classes' names, of pictures that lie in a folder for each class.

    Folders that hold everything are no classes, and neither are EDM's numbered ones.

    Args:
        names: of the pictures, with "/" between folders.
    """
    parts = [name.split("/")[:-1] for name in names]
    while all(parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    if not all(parts) or all(EDM_FOLDER.fullmatch(part[0]) for part in parts):
        return None, ()
    classes = tuple(sorted({part[0] for part in parts}))
    number = {name: i for i, name in enumerate(classes)}
    return [number[part[0]] for part in parts], classes


def named_labels(values: Sequence[object]) -> tuple[list[int], tuple[str, ...]]:
    """Return labels as numbers, and the classes' names if they are words: then in order of name.

    Args:
        values: one for each picture: whole numbers, or words.

    Raises:
        UserError: for a mixture, or anything else.
    """
    texts = [str(value).strip() if type(value) in (int, str) else "" for value in values]
    if bad := next((value for value, text in zip(values, texts, strict=True) if not text), None):
        raise UserError(f"a label is {shown(bad)}; allowed: whole numbers, or names of classes")
    if all(re.fullmatch(r"\d{1,9}", text) for text in set(texts)):
        return [int(text) for text in texts], ()
    if any(type(value) is int for value in values):
        raise UserError("some labels are numbers and some are words; give one kind")
    names = tuple(sorted(set(texts)))
    number = {name: i for i, name in enumerate(names)}
    return [number[text] for text in texts], names
