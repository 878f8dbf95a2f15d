"""Safetensors files, written and read one tensor at a time, with their sha256 taken on the way.

The library's own functions hold a file's bytes beside its tensors, and a sha256 of the file reads it once more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json

__all__ = ["DTYPES", "Damaged", "read_file", "write_file"]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(Exception):
    """A file is not what its sha256 says."""


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, wherever they lie, and return the file's sha256; it is synced to the disk.

    Args:
        path: the file.
        tensors: by name; only one is needed at a time.
    """
    about = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()}
    order = sorted(about, key=lambda name: (-about[name][0].itemsize, name))
    header, begin = Json(), 0
    for name in order:
        dtype, shape = about[name]
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            sha256.update(part)
        for name in order:
            raw = _bytes_of(tensors[name].detach().cpu().contiguous())
            file.write(raw)
            sha256.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def read_file(
    path: Path, sha256: str, convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
) -> dict[str, Tensor]:
    """Read the tensors of a file into memory of their own; Damaged unless its sha256 is the one given.

    Args:
        path: the file.
        sha256: of the file.
        convert: what becomes of each tensor as soon as it is read, by name.
    """
    seen, tensors = hashlib.sha256(), dict[str, Tensor]()
    with path.open("rb") as file:
        try:
            left = os.fstat(file.fileno()).st_size
            length = file.read(8)
            text = file.read(min(int.from_bytes(length, "little"), left))
            seen.update(length + text)
            header = json.loads(text)
            header.pop("__metadata__", None)
            left, position = left - 8 - len(text), 0
            for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                dtype, shape, (begin, end) = DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
                if begin != position or end > left or end - begin != math.prod(shape) * dtype.itemsize:
                    raise Damaged
                tensor = torch.empty(shape, dtype=dtype)
                raw = _bytes_of(tensor)
                if file.readinto(raw) != end - begin:
                    raise Damaged
                seen.update(raw)
                tensors[name], position = convert(name, tensor), end
            seen.update(file.read())
        except UserError:
            raise
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            RuntimeError,
        ):  # a header may say anything
            raise Damaged from None
    if seen.hexdigest() != sha256:
        raise Damaged
    return tensors


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw) if tensor.numel() else memoryview(bytearray())
