"""Rows of a set of pictures: features and what else metrics need, computed once, chunk by chunk, by all processes."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import gen
from gen.config.spec import Json, spec_of
from gen.data.lib.tensors import content_hash
from gen.eval.features import Extractor
from gen.eval.image_sets import Images
from gen.eval.store import RowFile, open_store, share_chunks, wait_for_lock
from gen.training.distributed import broadcast, is_main
from gen.training.log import ProgressBar

__all__ = ["Extraction", "Rows", "capabilities", "code_digest"]

FIRST = 10  # samples that are kept as pictures
COMPUTED = ("features", "spatial", "embeddings")


@dataclass(frozen=True)
class Extraction:
    """The way in which rows are computed, and the folder that keeps them.

    Attributes:
        root: folder of stores, which all processes see; None for a temporary one.
        batch_size: pictures that are read at a time; changes nothing but speed and memory.
        device: of the extractor.
        part: (k, n), from 1: of what is missing, this process computes part k of n, which others do not; None for all
            that a launcher started this process for.
        collective: True if processes read each picture together: then each computes all rows, and keeps them alone.
        quiet: False shows progress.
    """

    root: Path | None = None
    batch_size: int = 250
    device: torch.device | str = "cpu"
    part: tuple[int, int] | None = None
    collective: bool = False
    quiet: bool = True


class Rows:
    """A set of pictures and its rows under the names of gen.eval.metrics.NEEDS.

    Rows are computed in chunks of a fixed number of pictures, the last one filled up, and kept in a store: so their
    bits depend on the pictures alone, never on batches, processes or interruptions. A file of gen.eval.store holds each
    name's.

    Args:
        images: the set.
        extractor: that features come from.
        spec: of the extractor.
        how: where rows are kept, and by whom they are computed.
    """

    def __init__(self, images: Images, extractor: Extractor, spec: object, how: Extraction) -> None:
        self.images, self.extractor, self.spec, self._how = images, extractor, spec, how
        batch = getattr(extractor, "batch", images.least)
        self.chunk = batch * -(-images.least // batch)
        self.given: dict[str, Tensor] = {}  # rows that do not come from the pictures: prompts, targets
        self._files: dict[str, RowFile] = {}
        self._folder: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    @property
    def features(self) -> Tensor:
        """Features of all pictures, [N, D]."""
        features = self.rows("features")
        assert features is not None
        return features

    @property
    def labels(self) -> Tensor | None:
        return self.rows("labels")

    @property
    def filled(self) -> bool:
        """Whether features were computed."""
        return "features" in self._files

    def has(self, name: str) -> bool:
        """Return whether there can be rows of a name."""
        if name == "labels":
            return self.images.labels is not None or name in self.images.extras
        return name in self.given or name in self.images.extras or name in capabilities(self.extractor)

    def rows(self, name: str) -> Tensor | None:
        """Return all rows of a name, [N, ...], in the order of the pictures; None if there are none."""
        if name in self.given:
            return self.given[name]
        if name == "logits" and self.has(name):
            return cast(Any, self.extractor).head(self.rows("features"))
        if name == "labels" and self.images.labels is not None:
            return self.images.labels
        if name not in self._files and not self.has(name):
            return None
        if name not in self._files:
            self.fill((name,))
        return self._files[name].rows()

    def fill(self, names: Sequence[str] = ("features",)) -> None:
        """Compute what is missing of these rows; all processes of a launcher have to call, and share it out.

        With a part the rest may still be missing afterwards.
        """
        wanted = [*names, *self.images.extras]
        new = [name for name in dict.fromkeys(wanted) if name not in self._files and name not in self.given]
        new = [name for name in new if not (name == "labels" and self.images.labels is not None)]
        if not new:
            return
        folder = self._store()
        for name in new:
            n = min(len(self), FIRST) if name == "first" else len(self)
            self._files[name] = RowFile(folder, name, n, self.chunk)
        missing = {name: self._files[name].missing() for name in new}
        todo = sorted({chunk for chunks in missing.values() for chunk in chunks})
        together = self._how.part is None and not self._how.collective
        mine, part = share_chunks(todo, -(-len(self) // self.chunk), None if together else self._how.part or (1, 1))
        if mine:
            with wait_for_lock(folder, part, lambda line: self._bar(0).say(line)):
                missing = {name: self._files[name].missing() for name in new}  # others may have been here meanwhile
                self._compute(sorted({*mine} & {i for chunks in missing.values() for i in chunks}), missing)
        if together:
            broadcast(None)  # nobody reads before all have written

    def _bar(self, start: int) -> ProgressBar:
        quiet = self._how.quiet or not is_main()
        return ProgressBar(f"{self.images.name}, pictures", len(self), start, quiet)

    def _compute(self, chunks: list[int], missing: dict[str, list[int]]) -> None:
        bar = self._bar(len(self) - sum(len(self._span(i)) for i in chunks))
        lacking = {name: set(indices) for name, indices in missing.items()}
        for chunk, read in self._read(chunks):
            names = [name for name, indices in lacking.items() if chunk in indices]
            found = read | self._outputs(read["images"], [name for name in names if name in COMPUTED])
            for name in names:
                rows = found["images"][:FIRST] if name == "first" else found[name]
                self._files[name].write(chunk, rows)
            bar.advance(len(read["images"]))
        bar.close()

    def _span(self, chunk: int) -> range:
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, len(self)))

    def _read(self, chunks: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield chunks with what is read for them, several of which are read at once, while others are computed."""
        each = 1 if self.images.drawn else max(1, self._how.batch_size // self.chunk)
        groups: list[list[int]] = []
        for chunk in chunks:
            if groups and groups[-1][-1] == chunk - 1 and len(groups[-1]) < each:
                groups[-1].append(chunk)
            else:
                groups.append([chunk])
        spans = [range(self._span(group[0]).start, self._span(group[-1]).stop) for group in groups]
        for group, span, read in zip(groups, spans, _ahead(self.images, spans), strict=True):
            for chunk in group:
                rows = self._span(chunk)
                part = slice(rows.start - span.start, rows.stop - span.start)
                yield chunk, {name: values[part] for name, values in read.items()}

    def _outputs(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return an extractor's rows of one chunk, which is filled up with black pictures."""
        if not names:
            return {}
        full = images.new_zeros(self.chunk, *images.shape[1:])
        full[: len(images)] = images
        full, extractor = full.to(self._how.device), cast(Any, self.extractor)
        both = "spatial" in names and hasattr(extractor, "outputs")
        found: dict[str, Tensor] = extractor.outputs(full) if both else {}
        for name in names:
            if name not in found:
                method = {"features": "__call__", "spatial": "spatial", "embeddings": "embed"}[name]
                found[name] = getattr(extractor, method, extractor)(full)
        return {name: found[name][: len(images)].float().cpu() for name in names}

    def _store(self) -> Path:
        """Return the folder that rows are kept in, the same in all processes."""
        if self._folder is not None:
            return self._folder
        if self._how.root is not None and self.fingerprint and not self._how.collective:
            self._folder = open_store(self._how.root, self._identity())
        else:
            temporary = tempfile.mkdtemp(prefix="gen-features-")
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
            self._folder = Path(broadcast(temporary, self._how.collective))
        return self._folder

    def _identity(self) -> Json:
        """Return what decides these rows' bits."""
        return {
            "format": 1,
            "pictures": self.fingerprint,
            "n": len(self),
            "shape": list(self.images.shape),
            "extractor": {"name": self.extractor.name, "sha256": self.extractor.sha256, "spec": spec_of(self.spec)},
            "chunk": self.chunk,
            "batch": min(self._how.batch_size, self.chunk) if self.images.drawn else None,
            "code": code_digest(),
        }


def capabilities(extractor: Extractor) -> tuple[str, ...]:
    """Return the names of rows that an extractor gives of pictures.

    Args:
        extractor: loaded.
    """
    spatial = hasattr(extractor, "spatial") or hasattr(extractor, "outputs")
    names = {"features": True, "images": True, "logits": hasattr(extractor, "head")}
    names |= {"spatial": spatial, "embeddings": hasattr(extractor, "text"), "prompts": False}
    return tuple(name for name, there in names.items() if there)


def _ahead(images: Images, spans: Sequence[range]) -> Iterator[dict[str, Tensor]]:
    """Read pictures one step ahead of who uses them; sampling waits its turn."""
    if images.drawn:
        yield from (images.read(span) for span in spans)
        return
    with ThreadPoolExecutor(1) as pool:
        following = [pool.submit(images.read, span) for span in spans[:1]]
        for i in range(len(spans)):
            read = following.pop().result()
            following += [pool.submit(images.read, span) for span in spans[i + 1 : i + 2]]
            yield read


@cache
def code_digest() -> str:
    """Return a digest of gen's own source and of torch's version: other code may compute other bits."""
    root = Path(gen.__file__).parent
    files = sorted(Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names)
    source = [f"{file.relative_to(root)} {file.read_text()}" for file in files if file.suffix == ".py"]
    return content_hash(torch.__version__, *source)
