"""Pictures of a data set of Hugging Face: parquet, arrow, saved ones, an image folder, or a name on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields
from gen.data.lib.archives import PackedWords
from gen.data.lib.labels import named_labels
from gen.data.lib.pictures import Contents, PictureSet, PictureSource
from gen.data.lib.row_groups import RowGroups, opened
from gen.data.lib.streamed import StreamedSet, check_rows_left, held_out_counts
from gen.data.lib.table_files import SAVED, loading, table_files
from gen.data.lib.tensors import check_split, content_hash

__all__ = ["HuggingFace"]

FILES = {".arrow": "arrow", ".parquet": "parquet"}
LABELS, CAPTIONS = ("label", "labels", "class"), ("caption", "text", "prompt")


@dataclass(frozen=True)
class HuggingFace(PictureSource):
    """Pictures of what the package `datasets` loads, row by row from its memory-mapped tables, never all in memory.

    Needs gen-diffusion[datasets]. `path` is a .parquet or .arrow file, a folder that save_to_disk wrote, a folder of
    parquet files or pictures in the hub's layout, or the name of a data set on the hub, which is downloaded. No code of
    a data set runs. The package keeps tables of what is no arrow file in its own cache. Fields and reading are those of
    every source of pictures (gen.data.lib.pictures), the bytes are those that the table has.

    With `streaming`, parquet files, local or remote (also by URL, "hf://datasets/owner/name" or any that fsspec opens),
    and local arrow files are read by row groups while a run trains, and nothing is copied to a disk. Opening reads the
    footers alone, which the fingerprint is made of; no picture is looked at before it is trained on, so a size is
    needed, channels are 3 unless stated, and neither buckets nor skip_corrupt are there. Held out is the same share of
    each group, whatever the classes. A batch has rows of `row_groups` groups, from as many parts of the data, each in
    its own random order (gen.training.order.GroupOrder): an exact function of seed and step that resumes at once, as
    all data do, but less mixed than a permutation of all rows. Two rows of one group share a batch more often than
    others, so where neighbours are of one class, have small groups (1000 rows or fewer) and many at once.

    Attributes:
        config: name of the configuration, for data sets of several; "" for the only one.
        part: the data set's own split that is read.
        test_part: its split that is all of "test", such as "validation"; "" to hold out a share of `part`.
        revision: branch, tag or commit on the hub; "" for the newest.
        image_column: "" for the only column of pictures.
        label_column: "" for the only column of ClassLabel, or one called label, labels or class, or none.
        caption_column: "" for a column of text called caption, text or prompt, or none.
        streaming: whether the rows are read while a run trains, see above.
        row_groups: with streaming, of how many groups a batch mixes rows; twice as many are in memory, of each process
            its share of them.
    """

    config: str = ""
    part: str = "train"
    test_part: str = ""
    revision: str = ""
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    streaming: bool = False
    row_groups: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, row_groups="[1, 100000]")
        if self.streaming and (self.size is None or self.buckets is not None or self.skip_corrupt):
            lacks = "need a size (--size 32)" if self.size is None else "go without buckets and skip_corrupt"
            raise UserError(f"HuggingFace: with streaming no picture is read before it is trained on: the data {lacks}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W); with streaming C is 3 unless it is stated."""
        return (self.channels or 3, *self._pixels) if self.streaming else super().shape

    @property
    def classes(self) -> int:
        """The number of labels; 0 without."""
        return self._streams[0].classes if self.streaming else super().classes

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""
        return self._streams[0].names if self.streaming else super().label_names

    def open(self, split: str) -> PictureSet | StreamedSet:  # type: ignore[override] # both are data sets
        """Open "train" or "test"."""
        if not self.streaming:
            return super().open(split)
        check_split(split)
        streams = self._streams
        stream = streams[-1 if split == "test" else 0]
        if len(streams) == 1:
            held = held_out_counts(stream.groups, split, self.holdout, stream.where)
        else:
            held = stream.groups.rows * (split == "test")
            check_rows_left(len(stream.groups), held, split, self.holdout, stream.where)
        options = f"{split} {self.shape} {self.background} {self.crop} {self.flip} {held.tolist()} {stream.columns}"
        crop = "adm" if self.crop == "random" and split == "test" else self.crop
        flip = self.flip if split == "train" else "no"
        stamps = [file.stamp for file in stream.groups.files]
        fingerprint = content_hash("streamed", options, str(stream.names), *stamps)
        return StreamedSet(
            source=RowGroups(stream.groups.files, [c for c in stream.columns if c]), columns=stream.columns,
            held_out=held, split=split, shape=self.shape, classes=streams[0].classes, background=self.background,
            crop=crop, flip=flip, groups_at_once=self.row_groups, fingerprint=fingerprint,
        )  # fmt: skip

    @cached_property
    def _streams(self) -> tuple[Stream, ...]:
        """The row groups of "train" and of "test", which may be the same."""
        streams = tuple(self._stream(source) for source in self.sources)
        if streams[-1].names != streams[0].names or (not streams[-1].columns[1]) != (not streams[0].columns[1]):
            raise UserError(f"{streams[-1].where} has other classes than {streams[0].where}")
        return streams

    def _stream(self, source: str) -> Stream:
        """Find the files of a part, and read their footers."""
        where, _, part = source.removesuffix("]").rpartition(" [")
        with loading(source) as datasets:
            files = opened(table_files(where, part, self.config, self.revision))
            features = dict(datasets.Features.from_arrow_schema(files[0].schema))
        image, label, caption = self._columns(features, source, ("int",))
        names = tuple(getattr(features.get(label), "names", ()))
        highest = [file.highest(label) for file in files] if label and not names else []
        if None in highest:
            raise UserError(f"{source}: the number of classes in {label} is not known: store it as a ClassLabel")
        classes = len(names) or 1 + max((number or 0 for number in highest), default=-1)
        columns = (image, label or None, caption or None)
        return Stream(RowGroups(files), columns, names, classes, source)

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
        image, label, caption = self._columns(features, str(path), ("string", "int"))
        labels, names = _labels(str(path), list(table[label]), features[label]) if label else (None, ())
        captions = PackedWords(str(text or "") for text in table[caption]) if caption else None
        return Contents(_rows(table, image, str(path)), labels, names, captions)

    def _load(self, where: str, part: str) -> Any:
        path = Path(where)
        with loading(f"{where} [{part}]") as datasets:
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

    def _columns(self, features: dict[str, Any], where: str, kinds: Sequence[str]) -> tuple[str, str, str]:
        """Return the columns of pictures, of labels and of captions, "" for none.

        Args:
            features: of `datasets`, by column.
            where: names the table.
            kinds: of columns without a ClassLabel that may be labels.
        """
        image = self._column("image", [n for n, f in features.items() if _kind(f) == "Image"], features, where)
        classes = [n for n, f in features.items() if _kind(f) == "ClassLabel"]
        named = [n for n in LABELS if _kind(features.get(n)) in kinds]
        label = self._column("label", classes or named[:1], features, where, needed=False)
        if label and _kind(features[label]) not in ("ClassLabel", *kinds):
            raise UserError(f"{where}: {label} holds no {' or '.join(kinds)}: store it as a ClassLabel")
        texts = [n for n in CAPTIONS if _kind(features.get(n)) == "string" and n != label]
        return image, label, self._column("caption", texts[:1], features, where, needed=False)

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
class Stream:
    """The row groups of a part: its columns of pictures, labels and captions, and its classes."""

    groups: RowGroups
    columns: tuple[str, str | None, str | None]
    names: tuple[str, ...]
    classes: int
    where: str


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
