"""Pictures of a data set of Hugging Face: parquet, arrow, saved ones, an image folder, or a name on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.config.errors import MissingDependency, UserError, nearest
from gen.data.lib.archives import PackedWords
from gen.data.lib.labels import named_labels
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["HuggingFace"]

SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk
FILES = {".arrow": "arrow", ".parquet": "parquet"}
LABELS, CAPTIONS = ("label", "labels", "class"), ("caption", "text", "prompt")


@dataclass(frozen=True)
class HuggingFace(PictureSource):
    """Pictures of what the package `datasets` loads, row by row from its memory-mapped tables, never all in memory.

    Needs gen-diffusion[datasets]. `path` is a .parquet or .arrow file, a folder that save_to_disk wrote, a folder of
    parquet files or pictures in the hub's layout, or the name of a data set on the hub, which is downloaded. No code of
    a data set runs. The package keeps tables of what is no arrow file in its own cache. Random order, splits and exact
    resumption need access by row, so there is no streaming. Fields and reading are those of every source of pictures
    (gen.data.lib.pictures), the bytes are those that the table has.

    Attributes:
        config: name of the configuration, for data sets of several; "" for the only one.
        part: the data set's own split that is read.
        test_part: its split that is all of "test", such as "validation"; "" to hold out a share of `part`.
        revision: branch, tag or commit on the hub; "" for the newest.
        image_column: "" for the only column of pictures.
        label_column: "" for the only column of ClassLabel, or one called label, labels or class, or none.
        caption_column: "" for a column of text called caption, text or prompt, or none.
    """

    config: str = ""
    part: str = "train"
    test_part: str = ""
    revision: str = ""
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts that "train" and "test" are of: "path [split]"."""
        if not self.test_part and self.test_path is None:
            return (f"{self.path} [{self.part}]",)
        return f"{self.path} [{self.part}]", f"{self.test_path or self.path} [{self.test_part or self.part}]"

    def contents(self, path: Path) -> Contents:
        """Load a table, and list its rows.

        Args:
            path: one of `sources`.
        """
        where, _, part = str(path).removesuffix("]").rpartition(" [")
        table = self._load(where, part)
        features = dict(table.features)
        image = self._column("image", [n for n, f in features.items() if _kind(f) == "Image"], features, str(path))
        classes = [n for n, f in features.items() if _kind(f) == "ClassLabel"]
        named = [n for n in LABELS if _kind(features.get(n)) in ("string", "int")]
        label = self._column("label", classes or named[:1], features, str(path), needed=False)
        texts = [n for n in CAPTIONS if _kind(features.get(n)) == "string" and n != label]
        caption = self._column("caption", texts[:1], features, str(path), needed=False)
        labels, names = _labels(str(path), list(table[label]), features[label]) if label else (None, ())
        captions = PackedWords(str(text or "") for text in table[caption]) if caption else None
        return Contents(_rows(table, image, str(path)), labels, names, captions)

    def _load(self, where: str, part: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            hint = "pip install 'gen-diffusion[datasets]'"
            raise MissingDependency(f'the data "huggingface" need datasets: {hint}') from error
        path = Path(where)
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            if any((path / name).is_file() for name in SAVED):
                loaded = datasets.load_from_disk(where)
                return loaded[part] if isinstance(loaded, dict) else loaded
            if path.is_file():
                kind = FILES.get(path.suffix.lower())
                if kind is None:
                    raise UserError(f"{where} is neither .parquet nor .arrow")
                return datasets.load_dataset(kind, data_files={part: where}, split=part)
            options = {"name": self.config or None, "split": part, "revision": self.revision or None}
            return datasets.load_dataset(where, **options)
        except UserError:
            raise
        except Exception as error:  # files, formats, networks: the package raises anything
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{where} [{part}] cannot be loaded ({type(error).__name__}: {reason})") from error
        finally:
            if not bars:
                datasets.enable_progress_bars()

    def _column(self, what: str, found: list[str], features: dict[str, Any], path: str, needed: bool = True) -> str:
        """Return the column that is stated, or the only one of its kind; "" for none."""
        if stated := str(getattr(self, f"{what}_column")):
            if stated not in features:
                raise UserError(f"{path} has no column {stated!r}. {nearest(stated, features)}")
            return stated
        if len(found) == 1 or (not found and not needed):
            return found[0] if found else ""
        count = f"{len(found)} columns ({', '.join(found)})" if found else f"no column (of {', '.join(features)})"
        raise UserError(f"{path} has {count} of the kind {what}: state {what}_column")


@dataclass(frozen=True)
class Rows:
    """The pictures of a table of `datasets`, by row, undecoded."""

    table: Any
    column: str
    path: str
    names: Sequence[str]
    stamps: Sequence[str]

    def read(self, row: int) -> bytes:
        """Return the bytes of a row's picture."""
        given = self.table[row][self.column]
        data = given.get("bytes") if isinstance(given, dict) else given
        if data is None and isinstance(given, dict) and given.get("path"):
            try:
                data = Path(given["path"]).read_bytes()
            except OSError as error:
                raise UserError(f"{self.where(row)}: {given['path']} cannot be read: {error.strerror}") from error
        if not isinstance(data, bytes):
            raise UserError(f"{self.where(row)} has no picture in {self.column}")
        return data

    def where(self, row: int) -> str:
        """Return path, split and row."""
        return f"{self.path}, row {row}"


def _rows(table: Any, column: str, path: str) -> Rows:
    import datasets

    table = table.select_columns([column])
    if _kind(table.features[column]) == "Image":
        table = table.cast_column(column, datasets.Image(decode=False))
    about = hashlib.sha256()
    for file in table.cache_files:
        status = Path(file["filename"]).stat()
        about.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    stamp = about.hexdigest()[:16] if table.cache_files else str(table._fingerprint)
    rows = range(len(table))
    if not rows:
        raise UserError(f"{path} holds no rows")
    return Rows(table, column, path, PackedWords(f"{row:08}" for row in rows), PackedWords(stamp for _ in rows))


def _kind(feature: Any) -> str:
    """Return "Image", "ClassLabel", "string", "int" or "" of a column's feature."""
    name, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name in ("Image", "ClassLabel"):
        return name
    return "string" if dtype in ("string", "large_string") else "int" if dtype.startswith(("int", "uint")) else ""


def _labels(path: str, values: list[Any], feature: Any) -> tuple[list[int], tuple[str, ...]]:
    if bad := next((row for row, value in enumerate(values) if value is None or value == -1), None):
        raise UserError(f"{path}, row {bad} has no label")
    if _kind(feature) == "ClassLabel":
        return [int(value) for value in values], tuple(feature.names)
    try:
        return named_labels(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
