"""The files of a data set's tables, wherever they lie: one file, a saved data set, a folder, or the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gen.config.errors import MissingDependency, UserError, nearest
from gen.config.reading import read_json
from gen.data.lib.row_groups import parquet_files

__all__ = ["SAVED", "loading", "table_files"]

SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk


def table_files(where: str, part: str, config: str = "", revision: str = "") -> list[str]:
    """Return the paths or URLs of the .parquet and .arrow files of a part of a data set.

    Args:
        where: a file, a folder that save_to_disk wrote, a folder in the hub's layout, a URL, or a name on the hub.
        part: the data set's own split.
        config: name of the configuration; "" for the only one.
        revision: branch, tag or commit on the hub; "" for the newest.

    Raises:
        UserError: for a part that is not there, and for what cannot be loaded.
        MissingDependency: without the package `datasets`, where it is needed.
    """
    if where.endswith((".parquet", ".arrow")):
        return [where]
    folder = Path(where)
    folder = folder / part if (folder / SAVED[0]).is_file() else folder
    if (folder / SAVED[1]).is_file():
        return [str(folder / file["filename"]) for file in read_json(folder / SAVED[1])["_data_files"]]
    hub = re.fullmatch("hf://datasets/([^/@]+/[^/@]+)", where)
    if "://" in where and hub is None:
        return parquet_files(where)
    options = {"name": config or None, "revision": revision or None}
    with loading(f"{where} [{part}]") as datasets:
        builder = datasets.load_dataset_builder(where if hub is None else hub[1], **options)
        known: dict[str, list[str]] = builder.config.data_files or {}
        if part not in known:
            raise UserError(f"{where} has no part {part!r}. {nearest(part, map(str, known))}")
        return list(map(str, known[part]))


@contextmanager
def loading(where: str) -> Iterator[Any]:
    """Yield the package `datasets`, without its progress bars; turn what it raises into one line.

    Args:
        where: names the data set.
    """
    try:
        import datasets
    except ImportError as error:
        hint = "pip install 'gen-diffusion[datasets]'"
        raise MissingDependency(f'the data "huggingface" need datasets: {hint}') from error
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    except UserError:
        raise
    except Exception as error:  # files, formats, networks: the package raises anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where} cannot be loaded ({type(error).__name__}: {reason})") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
