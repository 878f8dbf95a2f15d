"""Samples written to a file: any number in little memory, shared out over processes, and resumed after a kill."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gen.config.images import to_pil
from gen.config.spec import Json
from gen.config.writing import replacing, write_text
from gen.data.lib.labels import LABELS_FILE
from gen.eval.store import RowFile, open_store, share_chunks, wait_for_lock
from gen.samples import Samples
from gen.training.distributed import broadcast, is_main
from gen.training.log import ProgressBar

__all__ = ["FileOfSamples", "write_npz", "write_samples"]

CAPTIONS_FILE = "metadata.jsonl"
COPIED = 1000  # pictures that are copied into a file at a time
FRAME = 62.5  # milliseconds of a picture of a film, 16 a second
STAMP = (1980, 1, 1, 0, 0, 0)  # of a member of a zip: equal samples are equal files


@dataclass(frozen=True)
class FileOfSamples:
    """n samples on their way to a file.

    They are drawn in chunks of batch_size by index, and kept in a hidden folder beside the file until all are there:
    so the same call goes on where a kill stopped it, several processes draw different chunks, and the file has the same
    bytes whoever drew what, and when.

    Attributes:
        out: file.npz, or a new folder of PNGs.
        n: number of samples.
        batch_size: samples of a chunk; another one may round otherwise.
        identity: JSON values, of all that decides the samples; chunks of others are not used.
        part: (k, m), from 1: this process draws part k of m; None for its share of a launcher's processes.
        collective: whether all processes draw each sample together.
        name: in progress.
        quiet: whether no progress is shown.
    """

    out: Path
    n: int
    batch_size: int
    identity: Json
    part: tuple[int, int] | None = None
    collective: bool = False
    name: str = "samples"
    quiet: bool = False

    def draw(self, draw: Callable[[range], Samples], labels: Tensor | None, prompts: Sequence[str] = ()) -> Json | None:
        """Draw the chunks that are missing, and write the file when all are there.

        Args:
            draw: returns the samples of consecutive indices.
            labels: [n], written beside the pictures; None for none.
            prompts: the caption of each, which are too; () for none.

        Returns:
            nfe, and the fraction of evaluations that a cache computed in full, means over samples; and `there`, how
            many samples there are. None in processes that do not write.
        """
        _sweep_finished(self.out.parent)
        folder = open_store(self._chunks, {"format": 1, "n": self.n, "batch": self.batch_size, **self.identity})
        files = {name: RowFile(folder, name, self.n, self.batch_size) for name in ("images", "costs")}
        todo, chunks = _missing(files), -(-self.n // self.batch_size)
        mine, lock = (broadcast(todo), "all") if self.collective else share_chunks(todo, chunks, self.part)
        if mine and self.collective:
            self._fill(files, mine, draw)
        elif mine:
            with wait_for_lock(folder, lock, lambda line: self._bar(0).say(line)):
                self._fill(files, sorted({*mine} & {*_missing(files)}), draw)  # others may have been here meanwhile
        if self.part is None:
            broadcast(None)  # nobody reads before all have written
        if not is_main():
            return None
        if lacking := _missing(files):
            return {"there": self.n - sum(len(self._rows(i)) for i in lacking)}
        write_samples(self.out, files["images"].rows(), labels, prompts)
        nfe, full = files["costs"].rows().mean(0).tolist()
        shutil.rmtree(self._chunks)
        return {"there": self.n, "nfe": nfe, "full": full}

    @property
    def _chunks(self) -> Path:
        return self.out.with_name(f".{self.out.name}-chunks")

    def _rows(self, chunk: int) -> range:
        return range(chunk * self.batch_size, min((chunk + 1) * self.batch_size, self.n))

    def _bar(self, start: int) -> ProgressBar:
        return ProgressBar(f"{self.name}, samples", self.n, start, self.quiet or not is_main())

    def _fill(self, files: dict[str, RowFile], chunks: list[int], draw: Callable[[range], Samples]) -> None:
        bar = self._bar(self.n - sum(len(self._rows(i)) for i in chunks))
        for i in chunks:
            samples = draw(self._rows(i))
            bar.advance(len(samples.x))
            if self.collective and not is_main():
                continue
            reports = samples.cache
            full = sum(report.fraction_per_row for report in reports) / len(reports) if reports else 1.0
            files["images"].write(i, samples.uint8())
            costs = torch.tensor([samples.nfe, full], dtype=torch.float64)
            files["costs"].write(i, costs.expand(len(samples.x), 2))
        bar.close()


def _sweep_finished(folder: Path) -> None:
    """Remove the chunks of files that were written whole, by processes that were killed before they did so."""
    for chunks in folder.glob(".*-chunks"):
        whole = chunks.with_name(chunks.name.removeprefix(".").removesuffix("-chunks"))
        with suppress(OSError):
            written = whole.stat().st_mtime_ns
            if all(file.stat().st_mtime_ns <= written for file in chunks.rglob("*") if file.is_file()):
                shutil.rmtree(chunks)


def _missing(files: dict[str, RowFile]) -> list[int]:
    return sorted({i for file in files.values() for i in file.missing()})


def write_samples(out: Path, images: Tensor, labels: Tensor | None, prompts: Sequence[str] = ()) -> None:
    """Write pictures with their labels: an .npz in ADM's layout, or a new folder of PNGs.

    The folder's labels stand in dataset.json, as in EDM's: {"labels": [["000000.png", 3], ...]}; its captions in
    metadata.jsonl, as in Hugging Face's image folders, a table that gen.data.table reads.

    Args:
        out: file.npz, or the folder.
        images: uint8 [N, C, H, W], on the CPU or memory-mapped; films [N, C, T, H, W], each a PNG of T frames.
        labels: [N]; None for none.
        prompts: N captions; () for none.
    """
    with replacing(out) as partial:
        if out.suffix == ".npz":
            write_npz(partial, images, labels, prompts)
            return
        partial.mkdir()
        names = [f"{i:06d}.png" for i in range(len(images))]
        for name, image in zip(names, images, strict=True):
            _write_png(partial / name, image)
        if labels is not None:
            listed = [list(pair) for pair in zip(names, labels.tolist(), strict=True)]
            write_text(partial / LABELS_FILE, json.dumps({"labels": listed}))
        if prompts:
            rows = ({"file_name": name, "text": text} for name, text in zip(names, prompts, strict=True))
            write_text(partial / CAPTIONS_FILE, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _write_png(file: Path, image: Tensor) -> None:
    """Write a picture uint8 [C, H, W], or a film [C, T, H, W] as the frames of one file, without loss."""
    first, *others = [to_pil(one) for one in (image[:, None] if image.ndim == 3 else image).unbind(1)]
    film: Json = {"save_all": True, "append_images": others, "duration": FRAME, "loop": 0} if others else {}
    first.save(file, **film)


def write_npz(file: Path, images: Tensor, labels: Tensor | None, prompts: Sequence[str] = ()) -> None:
    """Write pictures as ADM does: arr_0 uint8 [N, H, W, C], and the labels as arr_1, reading little at a time.

    Films are uint8 [N, T, H, W, C].

    Captions are the strings of a further array, prompts.

    Args:
        file: to write.
        images: uint8 [N, C, H, W], on the CPU or memory-mapped.
        labels: [N]; None for none.
        prompts: N captions; () for none.
    """
    n, c, *sides = images.shape
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", STAMP), "w", force_zip64=True) as member:
            _write_header(member, "|u1", (n, *sides, c))
            for part in images.split(COPIED):
                member.write(part.movedim(1, -1).contiguous().numpy().tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy", STAMP), "w") as member:
                np.lib.format.write_array(member, labels.numpy())
        if prompts:
            with archive.open(zipfile.ZipInfo("prompts.npy", STAMP), "w") as member:
                np.lib.format.write_array(member, np.array(prompts))


def _write_header(stream: IO[bytes], descr: str, shape: tuple[int, ...]) -> None:
    header: Any = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
