"""Kinds of data by what lies at a path, so that a path is as good as a spec: --data ./photos."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from gen.config.errors import UserError
from gen.config.reading import read_lines
from gen.config.spec import Json
from gen.data.lib.decoding import SUFFIXES

__all__ = ["spec_at"]

KINDS = {
    ".arrow": "huggingface",
    ".csv": "table",
    ".npz": "npz",
    ".parquet": "huggingface",
    ".safetensors": "latents",
    ".tar": "webdataset",
    ".tsv": "table",
    ".txt": "text",
    ".zip": "zip",
}
TEXT_FIELDS = ("text",), ("prompt", "response"), ("messages",)
LOOKED_AT = 1000  # entries of a folder


def spec_at(text: str) -> Json | None:
    """Return the spec of the data at a path: by the file's suffix, or by what the folder holds.

    Args:
        text: the path, a range of shards (gen.data.webdataset), or a URL of parquet files, which are streamed.

    Returns:
        The spec, whose further keys have their defaults; None for a word that is no path.

    Raises:
        UserError: for a path where nothing is, and for a file of no kind that is known.
    """
    if "://" in text:
        return {"name": "huggingface", "path": text, "streaming": True}
    path = Path(text)
    if text.endswith(".tar") and "{" in text:
        return {"name": "webdataset", "path": text}
    if not path.exists():
        if os.sep in text or "." in text:
            raise UserError(f"data: {text} is not there; give a file or a folder, or a name of `gen list data`")
        return None
    return {"name": _of_folder(path) if path.is_dir() else _of_file(path), "path": text}


def _of_folder(path: Path) -> str:
    if (path / "latents-00000.safetensors").is_file():  # beside the folders of their statistics
        return "latents"
    with os.scandir(path) as entries:
        suffixes = {os.path.splitext(entry.name)[1].lower() for entry in islice(entries, LOOKED_AT)}  # noqa: PTH122
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))  # by datasets' save_to_disk
    if saved or suffixes & {".arrow", ".parquet"}:
        return "huggingface"
    kinds = {kind for suffix, kind in KINDS.items() if suffix in suffixes} & {"webdataset", "latents", "text"}
    return "folder" if len(kinds) != 1 or suffixes & {"", *SUFFIXES} else kinds.pop()


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":  # lists of pictures and texts look alike from outside
        return "table" if any(f'"{key}"' in next(read_lines(path), "") for key in ("path", "file_name")) else "text"
    if suffix not in KINDS:
        raise UserError(f"data: {path} is of no kind that is known ({', '.join([*KINDS, '.jsonl'])}); pictures are "
                        "given as their folder")  # fmt: skip
    return "text" if suffix in (".parquet", ".arrow") and _holds_text(path) else KINDS[suffix]


def _holds_text(path: Path) -> bool:
    """Return whether a table has rows of text and no pictures; False without the package that reads it."""
    try:
        import pyarrow as pa
    except ImportError:
        return False
    from gen.data.lib.row_groups import opened

    schema = opened([str(path)])[0].schema
    pictures = any(pa.types.is_struct(column.type) or pa.types.is_binary(column.type) for column in schema)
    return not pictures and any(set(fields) <= set(schema.names) for fields in TEXT_FIELDS)
