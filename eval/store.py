"""Rows of pictures on disk: memory-mapped files that are filled chunk by chunk, by any processes, and outlive a kill.

A store is a folder for one set of pictures and one extractor: identity.json says which, and every kind of row
(features, spatial, images, labels ...) has three files: NAME.rows with the bare numbers [N, ...], NAME.json with their
type and shape, and NAME.sha256 with a digest for each finished chunk. A chunk without one, or whose bytes have another,
is not there: so whatever a kill, a full disk or a lost page leaves behind is computed again and never read.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json, digest
from gen.config.writing import Lock, sweep, write_json
from gen.training.distributed import broadcast, processes

__all__ = ["RowFile", "open_store", "share_chunks", "wait_for_lock"]

LOCK, PAUSE = ".lock-", 0.2  # beginning of a lock's name; seconds between two looks at one
DIGEST = 32  # bytes of a sha256
DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "uint8": torch.uint8}


def open_store(root: Path, identity: Json) -> Path:
    """Return the folder of a store, which is created if it is not there.

    Args:
        root: folder of all stores.
        identity: of the pictures and the extractor, JSON values; another one is another folder.

    Raises:
        UserError: if the folder holds something else.
    """
    folder = root / digest(identity)[:32]
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    for left in folder.glob(f"{LOCK}*"):  # by a killed process; a living one's is not to be had
        with suppress(UserError):
            Lock(left, folder).release()
    file = folder / "identity.json"
    if not file.exists():
        write_json(file, identity)
    elif read_json(file) != identity:
        raise UserError(f"{folder} holds the features of something else: remove it")
    return folder


def wait_for_lock(folder: Path, part: str, say: Callable[[str], None]) -> Lock:
    """Return the lock of a part of a store, once no other process has it.

    Args:
        folder: of the store.
        part: its name.
        say: is called once, with who has it, if there is somebody to wait for.
    """
    waiting = False
    while True:
        try:
            return Lock(folder / f"{LOCK}{part}", folder)
        except UserError as error:
            if not waiting:
                say(f"{str(error).partition('. Wait')[0]}: waiting")
            waiting = True
            time.sleep(PAUSE)


def share_chunks(missing: list[int], chunks: int, part: tuple[int, int] | None) -> tuple[list[int], str]:
    """Return which chunks this process has to compute, and the name of its part; every process has to call.

    Args:
        missing: chunks that are not there.
        chunks: number of all.
        part: (k, n), from 1, for the k-th n-th of all chunks, whoever computes the others; None for a share of what is
            missing, by the processes that a launcher started.
    """
    if part is not None:
        k, n = part
        return [i for i in missing if chunks * (k - 1) // n <= i < chunks * k // n], f"{k}-of-{n}"
    (rank, n), todo = processes(), broadcast(missing)
    return todo[len(todo) * rank // n : len(todo) * (rank + 1) // n], f"{rank + 1}-of-{n}"


class RowFile:
    """One kind of row of a store.

    Args:
        folder: of the store.
        name: of the kind.
        n: number of rows.
        chunk: rows that are written at once; the last chunk may have fewer.
    """

    def __init__(self, folder: Path, name: str, n: int, chunk: int) -> None:
        self.name, self.n, self.chunk = name, n, chunk
        self.chunks = -(-n // chunk)
        self._about, self._rows, self._digests = (folder / f"{name}.{end}" for end in ("json", "rows", "sha256"))
        self._whole: set[int] = set()  # chunks that were written here, or checked

    def missing(self) -> list[int]:
        """Return the chunks that are not there, or damaged."""
        unknown = [i for i in range(self.chunks) if i not in self._whole]
        if unknown and self._about.exists() and self._digests.exists():
            dtype, shape = self._layout()
            size = self.chunk * math.prod(shape[1:]) * dtype.itemsize
            known = self._digests.read_bytes()
            with self._rows.open("rb") as file:
                for i in unknown:
                    expected = known[i * DIGEST : (i + 1) * DIGEST]
                    if not any(expected):
                        continue
                    file.seek(i * size)
                    if hashlib.sha256(file.read(size)).digest() == expected:
                        self._whole.add(i)
        return [i for i in unknown if i not in self._whole]

    def write(self, i: int, rows: Tensor) -> None:
        """Write chunk i, rows [B, ...]; UserError for values that are not finite, and for rows unlike the others."""
        if rows.is_floating_point() and not bool(rows.isfinite().all()):
            bad = int((~rows.isfinite()).flatten(1).any(1).nonzero()[0]) if rows.ndim > 1 else 0
            raise UserError(f"the {self.name} of sample {i * self.chunk + bad} are not finite")
        self._create(rows)
        data = rows.cpu().contiguous().numpy().tobytes()
        size = self.chunk * (len(data) // max(len(rows), 1))
        for file, at, content in ((self._rows, i * size, data), (self._digests, i * DIGEST, _sha256(data))):
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(content)
        self._whole.add(i)

    def rows(self) -> Tensor:
        """Return all rows [N, ...], memory-mapped; UserError if a chunk is missing."""
        if missing := self.missing():
            first = missing[0] * self.chunk
            raise UserError(
                f"the {self.name} of {len(missing)} of {self.chunks} chunks are missing, the first at sample {first}: "
                "all parts have to be computed, in one folder of features that all processes see"
            )
        dtype, shape = self._layout()
        return torch.from_numpy(np.memmap(self._rows, dtype, "c", shape=shape))

    def _create(self, rows: Tensor) -> None:
        """Lay out the files for rows like these, as every process does that comes first."""
        name = str(rows.dtype).removeprefix("torch.")
        shape = [self.n, *rows.shape[1:]]
        layout = {"dtype": name, "shape": shape, "chunk": self.chunk}
        if name not in DTYPES:
            raise UserError(f"{self.name} are {name}; allowed: {', '.join(DTYPES)}")
        if not self._about.exists():
            write_json(self._about, layout)
        elif (found := read_json(self._about)) != layout:
            raise UserError(f"{self.name} of different shapes: {found['shape']}, {layout['shape']}")
        sizes = (math.prod(shape) * rows.dtype.itemsize, self.chunks * DIGEST)
        for file, size in zip((self._rows, self._digests), sizes, strict=True):
            with file.open("ab") as stream:
                if stream.tell() < size:
                    stream.truncate(size)

    def _layout(self) -> tuple[np.dtype, tuple[int, ...]]:
        about = read_json(self._about)
        return np.dtype(about["dtype"]), tuple(about["shape"])


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
