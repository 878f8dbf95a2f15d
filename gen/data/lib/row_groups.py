"""Row groups of parquet and arrow files, local or remote: the rows that are read at once, of which a few are kept.

A parquet file ends with a footer that says how many rows each of its groups has and where they lie; of an arrow file
the groups are its record batches, and it is mapped into memory. Nothing else is read before a row is. A file of lines
has nothing that says where they begin, so it is read once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from gen.config.errors import UserError
from gen.config.reading import decoded, numbered_lines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["GroupFile", "LinesFile", "RowGroups", "opened", "parquet_files"]

TAIL = 2**16  # bytes at the end of a parquet file, in which its footer mostly lies
OPENED_AT_ONCE = 16  # files of which the footers are read
LINES = 1000  # of a group


class GroupFile(Protocol):
    """A file of row groups. It can be pickled.

    Attributes:
        path: a local path or a URL that fsspec opens, such as "hf://datasets/owner/name/data.parquet".
        rows: of each group.
        schema: of arrow.
        stamp: a hash (hex) of what tells its content, as far as can be seen without reading it.
    """

    path: str
    rows: list[int]
    schema: Any
    stamp: str

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a group.

        Args:
            group: index in `rows`.
            columns: their names.
        """
        ...

    def highest(self, column: str) -> int | None:
        """Return the highest number of a column; None if the file does not tell.

        Args:
            column: of integers.
        """
        ...


class ParquetFile:
    """A parquet file, of which the footer was read; the stamp is the footer's hash, with sizes and statistics."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        with _reading(path), _stream(path) as stream:
            size = stream.seek(0, 2)
            tail = _tail(stream, size, TAIL)
            length = int.from_bytes(tail[-8:-4], "little") + 8
            if tail[-4:] != b"PAR1" or length > size:
                raise UserError(f"{path} is no parquet file, or cut off")
            footer = tail[-length:] if length <= len(tail) else _tail(stream, size, length)
            self._metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
        self.stamp = hashlib.sha256(footer).hexdigest()
        self.schema = self._metadata.schema.to_arrow_schema()
        self.rows = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read some columns of a group: those ranges of the file and no others."""
        import pyarrow.parquet as pq

        with _reading(self.path), _stream(self.path) as stream:
            file = pq.ParquetFile(stream, metadata=self._metadata, pre_buffer=True)
            return file.read_row_group(group, columns=list(columns), use_threads=False)

    def highest(self, column: str) -> int | None:
        """Return the highest of the statistics that the footer has of a column."""
        highest = 0
        for group in map(self._metadata.row_group, range(self._metadata.num_row_groups)):
            of = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
            if of.statistics is None or not of.statistics.has_min_max:
                return None
            highest = max(highest, int(of.statistics.max))
        return highest


class ArrowFile:
    """A local arrow file, a stream or a "file", mapped into memory.

    The stamp is the hash of the schema and of all columns but those of bytes, of which it has the length of each value.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if "://" in path:
            raise UserError(f"{path}: arrow files are streamed from a disk alone, parquet files from anywhere")
        with _reading(path):
            self.schema = self._batches[0]
            self.rows = [batch.num_rows for batch in self._batches[1]]
            self.stamp = self._hash()

    @cached_property
    def _batches(self) -> tuple[Any, list[Any]]:
        import pyarrow as pa

        source = pa.memory_map(self.path)
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            return file.schema, [file.get_batch(i) for i in range(file.num_record_batches)]
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, list(stream)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a batch; its memory is the file's."""
        import pyarrow as pa

        with _reading(self.path):
            return pa.Table.from_batches([self._batches[1][group]]).select(list(columns))

    def highest(self, column: str) -> int | None:
        """Return the highest number of a column."""
        import pyarrow.compute as pc

        batches = [batch.column(column) for batch in self._batches[1] if batch.num_rows]
        return max((pc.max(values).as_py() or 0 for values in batches), default=0)

    def _hash(self) -> str:
        import pyarrow as pa
        import pyarrow.compute as pc

        digest = hashlib.sha256(str(self.schema).encode())
        for batch in self._batches[1]:
            for column in batch.flatten().columns if hasattr(batch, "flatten") else batch.columns:
                binary = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
                for buffer in (pc.binary_length(column) if binary else column).buffers():
                    digest.update(b"" if buffer is None else buffer)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_batches"}


class LinesFile:
    """A local file of lines, such as .jsonl: columns "line" and "number", from 1; empty lines are no rows.

    The stamp is the hash of the content.
    """

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.path = path
        self.schema = pa.schema([("line", pa.string()), ("number", pa.int64())])
        self.rows, self._starts = list[int](), list[tuple[int, int]]()  # where a group begins, and its line's number
        digest, offset = hashlib.sha256(), 0
        with _reading(path), _stream(path) as stream:
            for number, line in numbered_lines(stream, path):
                digest.update(line)
                if line.strip():
                    if not self.rows or self.rows[-1] == LINES:
                        self.rows.append(0)
                        self._starts.append((offset, number))
                    self.rows[-1] += 1
                offset += len(line)
        self.stamp = digest.hexdigest()

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Read the lines of a group."""
        import pyarrow as pa

        lines, numbers = list[str](), list[int]()
        offset, first = self._starts[group]
        with _reading(self.path), _stream(self.path) as stream:
            stream.seek(offset)
            for number, line in numbered_lines(stream, self.path, first):
                if len(lines) == self.rows[group]:
                    break
                if line.strip():
                    lines.append(decoded(line.rstrip(b"\r\n"), f"{self.path}, line {number}"))
                    numbers.append(number)
        return pa.table([lines, numbers], schema=self.schema).select(list(columns))

    def highest(self, column: str) -> int | None:
        """Return None: nothing tells."""
        return None


class RowGroups:
    """The rows of some files, by number, read a group at a time; the last groups that were read are kept.

    Args:
        files: in the order of their rows.
        columns: names of those that are read.

    Attributes:
        kept: groups in memory, at most.
    """

    def __init__(self, files: Sequence[GroupFile], columns: Sequence[str] = ()) -> None:
        self.files, self.columns, self.kept = files, tuple(columns), 1
        self.rows = np.array([rows for file in files for rows in file.rows], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.rows)])
        counts = [len(file.rows) for file in files]
        self._file = np.repeat(np.arange(len(files)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._read: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self, group: int) -> pa.Table:
        """Return a group's columns; it is read unless it is kept.

        Args:
            group: number, over all files.
        """
        if group not in self._read:
            while len(self._read) >= self.kept:
                self._read.popitem(last=False)
            file = int(self._file[group])
            self._read[group] = self.files[file].read(group - int(self._first[file]), self.columns)
        self._read.move_to_end(group)
        return self._read[group]

    def where(self, group: int, row: int) -> str:
        """Return the file, the group in it and the row in that, in words.

        Args:
            group: number, over all files.
            row: in the group.
        """
        file = int(self._file[group])
        return f"{self.files[file].path}, row group {group - int(self._first[file])}, row {row}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": OrderedDict()}


def opened(paths: Sequence[str], lines: bool = False) -> list[GroupFile]:
    """Open files, some at once: what a parquet file says of its groups is read, and an arrow file is mapped.

    Args:
        paths: of .parquet or .arrow files.
        lines: whether they may be .jsonl files, too.

    Raises:
        UserError: for what cannot be read, for files of other kinds, and for columns that differ.
    """
    kinds: dict[str, Callable[[str], GroupFile]] = {".parquet": ParquetFile, ".arrow": ArrowFile}
    if lines:
        kinds[".jsonl"] = LinesFile
    suffixes = [next((kind for kind in kinds if path.endswith(kind)), "") for path in paths]
    if "" in suffixes:
        given, known = paths[suffixes.index("")], " nor ".join(kinds)
        raise UserError(f"{given} is neither {known}, and others are not streamed: leave out streaming")
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        files: list[GroupFile] = list(pool.map(lambda suffix, path: kinds[suffix](path), suffixes, paths))
    for file in files:
        if not file.schema.equals(files[0].schema):
            raise UserError(f"{file.path} has other columns than {files[0].path}: give them as data of their own")
    return files


def parquet_files(url: str) -> list[str]:
    """Return the URLs of the parquet files below a folder, at any depth, in order of name.

    Args:
        url: of the folder, as fsspec takes it.

    Raises:
        UserError: if there are none.
    """
    import fsspec

    system, inner = fsspec.core.url_to_fs(url)
    if not (paths := sorted(system.glob(f"{inner}/**/*.parquet"))):
        raise UserError(f"{url} holds no .parquet files")
    return [system.unstrip_protocol(path) for path in paths]


def _stream(path: str) -> IO[bytes]:
    """Open a file for reading, local or remote."""
    if "://" not in path:
        return open(path, "rb")  # noqa: PTH123 - the caller closes it
    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    stream: IO[bytes] = system.open(inner, "rb")
    return stream


def _tail(stream: IO[bytes], size: int, length: int) -> bytes:
    start = max(0, size - length)
    stream.seek(start)
    return stream.read(size - start)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what a file or a network raises, which may be anything, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason})") from error
