"""The files of latents: gen's safetensors shards of rows, and those that the code of other repositories reads.

Others keep no splits, so theirs are of one split. A draw is that of the row alone. Files are read by `latents` too
(gen.data.lib.latent_files).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.images import to_pil, to_uint8
from gen.config.tensor_files import write_file
from gen.config.writing import replacing, write_text
from gen.data.lib.latent_files import FAST_DIT_UNIT
from gen.data.lib.latent_statistics import LatentSums
from gen.diffusion.noise import Noise, derive

__all__ = ["LAYOUTS", "GenLayout", "check_layout"]

Columns = dict[str, Tensor]


class GenLayout:
    """`latents-00000.safetensors`, with the columns as they are; and the contract of the other layouts.

    Attributes:
        image_range: that of the images which those who read the files encode; None for any.
        needs: columns without which there are no such files.
        one_split: whether the files are of one split.
        pictures: whether the pictures are a column too, "pictures" in [-1, 1].
    """

    image_range: tuple[float, float] | None = None
    needs: tuple[str, ...] = ()
    one_split = False
    pictures = False

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        """Write the files of a shard; return the sha256 of each, by its name in the folder.

        Args:
            folder: of the latents.
            index: of the shard.
            rows: its rows in the data set.
            columns: "mean" and "logvar", or "latents"; their "_flip"; "labels", "features": tensors [len(rows), ...].
            names: of the labels; () where they have none.
        """
        return _write_tensors(folder, f"latents-{index:05d}.safetensors", columns)

    def finish(self, folder: Path, labels: Sequence[int] | None, sums: LatentSums) -> None:
        """Write what stands beside the shards.

        Args:
            folder: of the latents.
            labels: of all rows; None without.
            sums: of all latents that are trained on.
        """
        return


class FastDiT(GenLayout):
    """chuanyangjin/fast-DiT: a draw of each latent times 0.18215, [1, C, H, W] in float32, and its label [1]."""

    image_range = (-1.0, 1.0)
    needs = ("labels",)
    one_split = True

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        files = dict[str, str]()
        draws = _draws(columns, rows, "") * FAST_DIT_UNIT
        for row, draw, label in zip(rows, draws, columns["labels"].tolist(), strict=True):
            files |= _write_array(folder, f"imagenet256_features/{row}.npy", draw[None].numpy())
            files |= _write_array(folder, f"imagenet256_labels/{row}.npy", np.array([label]))
        return files


class EDM2(GenLayout):
    """NVlabs/edm2: mean and standard deviation [2 C, H, W] in float32, of images in [0, 1]; dataset.json of labels."""

    image_range = (0.0, 1.0)
    needs: tuple[str, ...] = ("mean",)
    one_split = True
    root = ""

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        files = dict[str, str]()
        both = torch.cat([columns["mean"].float(), (0.5 * columns["logvar"].float()).exp()], 1)
        for row, values in zip(rows, both, strict=True):
            files |= _write_array(folder, self.root + _numbered(row, "img-mean-std-", ".npy"), values.numpy())
        return files

    def finish(self, folder: Path, labels: Sequence[int] | None, sums: LatentSums) -> None:
        listed = [[_numbered(row, "img-mean-std-", ".npy"), label] for row, label in enumerate(labels or ())]
        write_text(folder / f"{self.root}dataset.json", json.dumps({"labels": listed if labels else None}))


class REPA(EDM2):
    """sihyun-yu/REPA: as EDM2, of images in [-1, 1], under vae-sd/; the pictures are PNG files under images/."""

    image_range = (-1.0, 1.0)
    needs = ("mean", "labels")
    root = "vae-sd/"
    pictures = True

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        files = super().write(folder, index, rows, columns, names)
        for row, picture in zip(rows, to_uint8(columns["pictures"]), strict=True):
            stream = io.BytesIO()
            to_pil(picture).save(stream, "png")
            files |= _write_bytes(folder, "images/" + _numbered(row, "img", ".png"), stream.getvalue())
        return files


class LightningDiT(GenLayout):
    """hustvl/LightningDiT: a draw of each latent and of the mirrored picture's; latents_stats.pt of the first."""

    image_range = (-1.0, 1.0)
    needs = ("labels",)
    one_split = True

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        tensors = {"latents": _draws(columns, rows, ""), "labels": columns["labels"]}
        # Their reader takes the mirrored one by a coin: without --flip it is the same.
        mirrored = any(name.endswith("_flip") for name in columns)
        tensors["latents_flip"] = _draws(columns, rows, "_flip") if mirrored else tensors["latents"].clone()
        return _write_tensors(folder, f"latents_rank00_shard{index:03d}.safetensors", tensors)

    def finish(self, folder: Path, labels: Sequence[int] | None, sums: LatentSums) -> None:
        shape = (1, -1, 1, 1)
        numbers = {"mean": sums.channel_mean.reshape(shape), "std": sums.channel_var.sqrt().reshape(shape)}
        with replacing(folder / "latents_stats.pt") as partial:
            torch.save({key: value.float() for key, value in numbers.items()}, partial)


class MAR(GenLayout):
    """LTH14/mar: mean and log variance [2 C, H, W] of a picture and of the mirrored one, as moments/CLASS/ROW.npz."""

    image_range = (-1.0, 1.0)
    needs = ("labels", "mean_flip")
    one_split = True

    def write(self, folder: Path, index: int, rows: range, columns: Columns, names: Sequence[str]) -> dict[str, str]:
        named = list(names) == sorted(names) and bool(names)  # by whose order their reader numbers the folders
        files = dict[str, str]()
        moments = {
            f"moments{end}": torch.cat([columns[f"mean{end}"], columns[f"logvar{end}"]], 1).float().numpy()
            for end in ("", "_flip")
        }
        for i, (row, label) in enumerate(zip(rows, columns["labels"].tolist(), strict=True)):
            stream, owner = io.BytesIO(), names[label] if named else f"{label:05d}"
            np.savez(stream, **{key: values[i] for key, values in moments.items()})
            files |= _write_bytes(folder, f"moments/{owner}/{row:08d}.npz", stream.getvalue())
        return files

    def finish(self, folder: Path, labels: Sequence[int] | None, sums: LatentSums) -> None:
        known = {*(labels or ())}
        if bare := sorted({*range(max(known, default=0))} - known):
            raise UserError(
                f"{folder}: no picture has the label {bare[0]}, and MAR's reader numbers the folders that it finds, so "
                "labels above are read as one less: encode data in which every class has pictures"
            )


LAYOUTS: dict[str, type[GenLayout]] = {
    "gen": GenLayout, "dit": FastDiT, "edm2": EDM2, "lightningdit": LightningDiT, "mar": MAR, "repa": REPA,
}  # fmt: skip


def _draws(columns: Columns, rows: range, suffix: str) -> Tensor:
    """Return a latent of each row, float32: itself, or a draw from its distribution."""
    if "latents" + suffix in columns:
        return columns["latents" + suffix].float()
    mean, logvar = columns["mean" + suffix].float(), columns["logvar" + suffix].float()
    noise = Noise(tuple(derive("latents", row, bool(suffix)) for row in rows))
    return mean + (0.5 * logvar).exp() * noise.normal("posterior", mean.shape[1:])


def _numbered(row: int, before: str, after: str) -> str:
    return f"{row // 1000:05d}/{before}{row:08d}{after}"


def _write_tensors(folder: Path, name: str, tensors: Columns) -> dict[str, str]:
    with replacing(folder / name) as partial:
        return {name: write_file(partial, tensors)}


def _write_array(folder: Path, name: str, array: np.ndarray[Any, Any]) -> dict[str, str]:
    stream = io.BytesIO()
    np.save(stream, array)
    return _write_bytes(folder, name, stream.getvalue())


def _write_bytes(folder: Path, name: str, data: bytes) -> dict[str, str]:
    with replacing(folder / name) as partial:
        partial.write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest()}


def check_layout(layout: GenLayout, splits: int, columns: Columns, image_range: Sequence[float]) -> None:
    """Raise UserError unless a layout can hold what is encoded.

    Args:
        layout: of the files.
        splits: number of splits that are encoded.
        columns: of a batch.
        image_range: of the autoencoder.
    """
    name = next(name for name, owner in LAYOUTS.items() if type(layout) is owner)
    if layout.one_split and splits > 1:
        raise UserError(f"the layout {name} keeps no splits: say which, --split train or --split test")
    if lacking := [column for column in layout.needs if column not in columns]:
        hint = "--flip" if lacking == ["mean_flip"] and "mean" in columns else "another layout"
        raise UserError(f"the layout {name} needs {', '.join(lacking)}, which there are none of: {hint}")
    if layout.image_range and tuple(image_range) != layout.image_range:
        raise UserError(
            f"the layout {name} is of images in {list(layout.image_range)}, the autoencoder takes {list(image_range)}: "
            "give it as a spec with its image_range"
        )
