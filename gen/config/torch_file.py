"""Files of torch.save, of both formats, and plain pickles, read as data; see gen.config.pickles."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.pickles import DTYPES, Global, PickleReader, Storage

__all__ = ["describe_start", "read_legacy", "read_torch"]

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how a file of torch's first format begins
NAMES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
NAMES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8"}
NAMES |= {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}

# How files begin that are taken for weights, and what they are.
STARTS = {
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself: fetch it with git lfs pull",
    b"<": "a page of HTML or XML, not the file itself: download it again",
    b"{": "JSON text",
    b"GGUF": "a GGUF file: import the safetensors it was made of",
    b"\x89HDF": "an HDF5 file of Keras",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"ustar": "a tar archive: unpack it first",
}


def describe_start(path: Path) -> str | None:
    """Return what a file is that is no file of weights, by how it begins; None for an unknown beginning.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    start = start[257:] if start[257:262] == b"ustar" else start.lstrip()
    return next((what for mark, what in STARTS.items() if start.startswith(mark)), None)


def read_torch(path: Path) -> Any:
    """Read a torch file or a pickle: tensors, containers and numbers, and inert records of everything else.

    Args:
        path: the file; UserError in one line for anything that is none, or whose checksums do not fit.
    """
    if what := describe_start(path):
        raise UserError(f"{path} is {what}")
    try:
        with path.open("rb") as file:
            # Mapped, so that reading allocates no more than there is; private, so that tensors may be written to.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _zipped(path, file, mapped) if zipfile.is_zipfile(file) else _legacy(mapped, len(mapped))
    except (UserError, OSError):
        raise
    except Exception as error:  # a foreign file may break anything; whatever it broke, the file is at fault
        raise UserError(f"{path} is damaged, or no file of weights ({' '.join(str(error).split())[:120]})") from None


def _zipped(path: Path, file: IO[bytes], mapped: mmap.mmap) -> Any:
    """Read an archive of torch.save, or of TorchScript, whose code stays unread; its tensors lie in the mapped file."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise UserError(f"{path} is an archive, no file of torch.save")
        _check_sums(path, archive)
    if "byteorder" in entries and bytes(_entry(mapped, entries["byteorder"]).numpy()) != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not read here")
    storages: dict[str, Storage] = {}

    def storage(about: tuple[Any, ...]) -> Storage:
        kind, key, _, numel = about[:4]
        if key not in storages:
            data, dtype = _entry(mapped, entries[f"data/{key}"]), _storage_dtype(kind)
            if len(data) < numel * dtype.itemsize:
                raise ValueError(f"data/{key} has {len(data)} bytes instead of {numel * dtype.itemsize}")
            storages[key] = Storage(data, dtype)
        return storages[key]

    return PickleReader(io.BytesIO(_entry(mapped, entries["data.pkl"]).numpy().tobytes()), storage).read()


def _entry(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> Tensor:
    """Return the bytes of an uncompressed entry, uint8 [bytes]."""
    if entry.compress_type:
        raise ValueError(f"{entry.filename} is compressed")
    if not entry.file_size:
        return torch.empty(0, dtype=torch.uint8)
    name, extra = struct.unpack_from("<HH", mapped, entry.header_offset + 26)  # of the local header, which is its own
    first = entry.header_offset + 30 + name + extra
    data = torch.frombuffer(mapped, dtype=torch.uint8, offset=first, count=entry.file_size)
    return data.clone() if first % 16 else data


def _check_sums(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise UserError unless every entry has the checksum that the archive names; without any where all are 0."""
    if not any(entry.CRC for entry in archive.infolist()):  # torch.serialization.set_crc32_options(False)
        return
    for entry in archive.infolist():
        try:
            with archive.open(entry) as stream:
                while stream.read(1 << 20):
                    pass
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: {error}") from None


def read_legacy(raw: bytes) -> Any:
    """Read bytes of torch's first format, which pickles hold in place of a tensor's numbers.

    Args:
        raw: the bytes.
    """
    return _legacy(io.BytesIO(raw), len(raw))


def _legacy(file: Any, size: int) -> Any:
    """Read a file of torch's first format, or a plain pickle."""
    first = PickleReader(file).read()
    if first != MAGIC:
        return first
    if PickleReader(file).read() != PROTOCOL:
        raise ValueError("another protocol than 1001")
    PickleReader(file).read()  # the byte order and sizes of the machine that wrote it
    storages: dict[str, Storage] = {}
    content = PickleReader(file, partial(_reserved, storages, size)).read()
    for key in PickleReader(file).read():
        storage = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count * storage.dtype.itemsize != len(storage.data):
            raise ValueError(f"storage {key} has {count} numbers")
        raw = file.read(len(storage.data))
        if len(raw) != len(storage.data):
            raise ValueError("cut short")
        if raw:
            storage.data.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return content


def _reserved(storages: dict[str, Storage], limit: int, about: tuple[Any, ...]) -> Storage:
    """Return a storage whose numbers will come after the pickle."""
    kind, key, _, numel, *view = about
    dtype = _storage_dtype(kind)
    if key not in storages:
        if not 0 <= numel * dtype.itemsize <= limit:
            raise ValueError(f"storage {key} of {numel} numbers in a file of {limit} bytes")
        storages[key] = Storage(torch.empty(numel * dtype.itemsize, dtype=torch.uint8), dtype)
    if not view or view[0] is None:
        return storages[key]
    _, offset, length = view[0]
    return Storage(storages[key].data[offset * dtype.itemsize : (offset + length) * dtype.itemsize], dtype)


def _storage_dtype(kind: object) -> torch.dtype:
    name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Global) else str(kind)
    return DTYPES[f"torch.{NAMES[name]}"]
