"""The files of latents as gen writes them: safetensors shards of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from gen.config.tensor_files import write_file
from gen.config.writing import replacing

__all__ = ["GenLayout", "Layout"]


class Layout(Protocol):
    """A way to write the rows of a shard to files."""

    def write(self, folder: Path, index: int, rows: range, columns: dict[str, Tensor]) -> dict[str, str]:
        """Write the files of a shard.

        Args:
            folder: of the latents.
            index: of the shard.
            rows: its rows in the data set.
            columns: "mean" and "logvar", or "latents"; their "_flip"; "labels", "features": tensors [len(rows), ...].

        Returns:
            sha256 of each file, by its name in the folder.
        """
        ...


class GenLayout:
    """`latents-00000.safetensors`, with the columns as they are."""

    def write(self, folder: Path, index: int, rows: range, columns: dict[str, Tensor]) -> dict[str, str]:
        name = f"latents-{index:05d}.safetensors"
        with replacing(folder / name) as partial:
            return {name: write_file(partial, columns)}
