"""Encoding of a data set of pictures: latents of an autoencoder, and features of an encoder, kept in shards of rows.

The bits of a row depend on the data set, the autoencoder and the batch size alone: rows [k b, (k + 1) b) always go
through a network together, and shards are made of whole batches. So a folder that several processes wrote, or that was
killed and gone on with, is the one that a single process writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, anchored, name_of, part, spec_of
from gen.data import DataSet, DataSource
from gen.data.lib.latent_layouts import LAYOUTS, GenLayout, check_layout
from gen.data.lib.latent_statistics import LatentSums
from gen.data.lib.latent_store import LatentStore
from gen.data.lib.shards import WHOLE_STORE, ShardPlan, own_part, write_missing
from gen.data.lib.tensors import SPLITS, content_hash
from gen.diffusion.autoencoder import Posterior
from gen.training.distributed import broadcast, is_main, processes
from gen.training.stream import in_one_line

__all__ = ["Encoding", "encode"]

NULL_TEXT = "text/null.safetensors"
STATED = "statistics/autoencoder.safetensors"
PACKAGES = ("torch", "diffusers", "transformers")  # whose versions may change the bits


@dataclass(frozen=True)
class Encoding:
    """The encoding of each picture, and the way it is kept.

    Attributes:
        autoencoder: see gen.models.autoencoders.
        encoder: see gen.models.encoders, whose features are kept too; None for none.
        text: see gen.models.text_encoders, whose embeddings of the captions are kept too; None for none.
        split: "train", "test", or "all", the rows of "train" and then those of "test", which `latents` keeps apart.
        flip: whether the mirrored pictures are encoded too. (To mirror latents is not the same.)
        dtype: of what is kept but labels; other layouts than gen's are float32 of it.
        layout: of the files: gen's, or those that the code of another repository reads.
        batch_size: pictures that go through the networks together.
        workers: processes that read pictures; 0 reads in this one.
        device: of the networks.
    """

    autoencoder: Any = part("models.autoencoders")
    encoder: Any = part("models.encoders", default=None)
    text: Any = part("models.text_encoders", default=None)
    split: Literal["all", "train", "test"] = "all"
    flip: bool = False
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    layout: Literal["gen", "dit", "edm2", "lightningdit", "mar", "repa"] = "gen"
    batch_size: int = 32
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_fields(self, batch_size="[1, inf)", workers="[0, 1024]")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are encoded, in order."""
        return SPLITS if self.split == "all" else (self.split,)


def encode(source: DataSource, folder: Path, how: Encoding, plan: ShardPlan = WHOLE_STORE) -> int:
    """Encode a data set, or what is missing of it; return how many shards still are, for other parts to write.

    Args:
        source: pictures, see gen.data.
        folder: to write; new, or of the same encoding.
        how: what is encoded.
        plan: the shards, and which of them are this call's.

    Raises:
        UserError: for data that are no pictures or whose items are random, for an autoencoder that does not suit them,
            and for a folder of something else.
    """
    if plan.size % how.batch_size:
        raise UserError(f"shard = {plan.size} is no multiple of batch_size = {how.batch_size}: bits would depend on it")
    if getattr(source, "flip", "no") == "double":
        raise UserError("the data have flip = double: leave it out, gen encode --flip keeps them beside the others")
    if (buckets := getattr(source, "buckets", None)) is not None:
        raise UserError(f"the data have buckets = {buckets}: leave it out, latents are of one size")
    sets = [source.open(split) for split in how.splits]
    plan = replace(plan, part=own_part(plan.part, processes()))
    writer = _Writer(source, sets, folder, how, plan)
    writer.store.open()
    write_missing(folder, "encode", writer.n, plan, writer.store.is_whole, writer.write)
    broadcast(None)  # of the processes of one launcher: nobody counts before all have written
    shards = plan.count(writer.n)
    missing = writer.store.missing(shards)
    if cut := getattr(writer.text, "truncated", 0):
        warnings.warn(f"{cut} captions are longer than the text encoder takes, and were cut", stacklevel=2)
    if not missing and is_main():
        writer.finish(shards)
    return missing


class _Writer:
    """One encoding of opened data."""

    def __init__(
        self, source: DataSource, sets: Sequence[DataSet], folder: Path, how: Encoding, plan: ShardPlan
    ) -> None:
        self.source, self.sets, self.how, self.plan = source, sets, how, plan
        self.layout: GenLayout = LAYOUTS[how.layout]()
        self.label_names: tuple[str, ...] = tuple(getattr(source, "label_names", ()))
        self.data: ConcatDataset[dict[str, Tensor]] = ConcatDataset(sets)  # type: ignore[arg-type] # has what it needs
        self.n, self.sizes = len(self.data), [len(one) for one in sets]
        first = self.data[0]
        if not getattr(source, "pictures", True) or first["x"].ndim != 3:
            raise UserError(f"{name_of(type(source))}: items are {list(first['x'].shape)}, no pictures to encode")
        if others := ", ".join(sorted(first.keys() - {"x", "y"})):
            raise UserError(f"{name_of(type(source))}: items have {others}; pictures and labels alone are encoded")
        self.coder: Any = how.autoencoder.load(how.device)
        self.encoder: nn.Module | None = None if how.encoder is None else how.encoder.load(how.device)
        self.text: nn.Module | None = None if how.text is None else how.text.load(how.device)
        if how.layout != "gen" and (how.encoder is not None or how.text is not None):
            raise UserError(f"the layout {how.layout} keeps latents alone: leave out --features and --text")
        self.dtype: torch.dtype = getattr(torch, how.dtype)
        self.store = LatentStore(folder, self._identity(sets, first))
        if how.layout != "gen":
            columns = self._columns({name: value[None] for name, value in first.items()})
            check_layout(self.layout, len(sets), columns, getattr(self.coder, "image_range", (-1.0, 1.0)))

    def _identity(self, sets: Sequence[DataSet], first: dict[str, Tensor]) -> Json:
        encoder = None if self.how.encoder is None else identity_of(self.how.encoder, self.encoder)
        return {
            "autoencoder": identity_of(self.how.autoencoder, self.coder),
            "encoder": encoder,
            "data": [one.fingerprint for one in sets],
            "picture": list(first["x"].shape),
            "splits": dict(zip(self.how.splits, self.sizes, strict=True)),
            "classes": self.source.classes,
            "labels": list(self.label_names),
            "flip": self.how.flip,
            "dtype": self.how.dtype,
            "batch_size": self.how.batch_size,
            "shard": self.plan.size,
            "layout": self.how.layout,
            "device": torch.device(self.how.device).type,
            "versions": {name: _version(name) for name in PACKAGES},
            **({} if self.text is None else {"text": self._text_identity()}),
        }

    def _text_identity(self) -> Json:
        """Return what decides the embeddings of the captions."""
        captions = list(map(self._caption, range(self.n)))
        if (bare := next((row for row, caption in enumerate(captions) if caption is None), None)) is not None:
            raise UserError(
                f"{name_of(type(self.source))}: item {bare} has no caption, which a text encoder needs; captions are a "
                "column of a table or of huggingface data, or files of webdataset, and may be empty"
            )
        return {"encoder": identity_of(self.how.text, self.text), "captions": content_hash(*map(str, captions))}

    def _caption(self, row: int) -> str | None:
        """Return the text of a row of all splits."""
        for one in self.sets:
            if row < len(one):
                read = getattr(one, "caption", None)
                return None if read is None else read(row)
            row -= len(one)
        raise IndexError(row)

    def write(self, index: int, rows: range) -> None:
        """Encode and write one shard."""
        batches = list[dict[str, Tensor]]()
        for items in self._read(rows):
            batches.append(self._columns(items))
        columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        columns |= {} if self.text is None else self._embedded([str(self._caption(row)) for row in rows])
        for name, values in columns.items():
            if values.is_floating_point() and not bool(values.isfinite().all()):
                bad = rows[int((~values.isfinite()).flatten(1).any(1).nonzero()[0])]
                raise UserError(f"{name} of row {bad} are not finite in {self.how.dtype}: try float32")
        files = self.layout.write(self.store.folder, index, rows, columns, self.label_names)
        trained = len(rows) if self.how.split != "all" else max(0, min(self.sizes[0] - rows.start, len(rows)))
        self.store.add(index, files, self._sums(columns, trained), columns.get("labels"))

    def finish(self, shards: int) -> None:
        """Write what stands beside the shards."""
        source = anchored(spec_of(self.source))
        self.layout.finish(self.store.folder, self.store.labels(shards), self.store.sums(shards))
        about: Json = {"rows": self.n, "source": source}
        if (stated := getattr(self.coder, "statistics", None)) is not None:
            about["stated"] = self.store.put(STATED, {"mean": stated.mean.cpu(), "std": stated.std.cpu()})
        if self.text is not None:
            null = {name: values[0] for name, values in self._embedded([""]).items()}
            about["text"] = {**self.store.identity["text"], **self.store.put(NULL_TEXT, null)}
        self.store.finish(shards, about)

    @torch.inference_mode()
    def _embedded(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of captions, on the CPU."""
        assert self.text is not None
        size, parts = self.how.batch_size, list[dict[str, Tensor]]()
        for i in range(0, len(captions), size):
            some = list(captions[i : i + size])
            found = self.text([*some, *[""] * (size - len(some))])  # of one shape always
            parts.append({key: value[: len(some)].cpu() for key, value in found.items()})
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in joined.items()}

    def _read(self, rows: range) -> Iterator[dict[str, Tensor]]:
        """Yield batches of items."""
        size = self.how.batch_size
        batches = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
        try:
            yield from DataLoader(self.data, batch_sampler=batches, num_workers=self.how.workers)
        except UserError as error:
            if not self.how.workers:
                raise
            raise in_one_line(error) from error

    @torch.inference_mode()
    def _columns(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of a batch, on the CPU."""
        x = items["x"]
        count, size = len(x), self.how.batch_size
        x = torch.cat([x, x[-1:].expand(size - count, *x.shape[1:])]).to(self.how.device)  # of one shape always
        columns = {"labels": items["y"].long()} if "y" in items else {}
        columns |= {"pictures": items["x"]} if self.layout.pictures else {}
        for suffix, images in {"": x, **({"_flip": x.flip(3)} if self.how.flip else {})}.items():
            posterior: Posterior = self.coder.encode(images)
            found: dict[str, Tensor] = {"latents": posterior.mean}
            if posterior.logvar is not None:
                found = {"mean": posterior.mean, "logvar": posterior.logvar}
            if self.encoder is not None:
                features = self.encoder(images)
                cls = [] if features.cls is None else [features.cls[:, None]]
                found = {**found, "features": torch.cat([*cls, features.tokens], 1)}
            columns |= {name + suffix: values[:count].to(self.dtype).cpu() for name, values in found.items()}
        return columns

    def _sums(self, columns: dict[str, Tensor], trained: int) -> LatentSums:
        """Return the sums of the rows to train on, the first of a shard, with their mirrored ones, as they are kept."""
        size, parts = self.how.batch_size, list[LatentSums]()
        for suffix in ("", "_flip") if self.how.flip else ("",):
            mean, logvar = (columns.get(name + suffix) for name in ("mean", "logvar"))
            mean = columns["latents" + suffix] if mean is None else mean
            for i in range(0, max(trained, 1), size):
                some = slice(i, min(i + size, trained))
                parts.append(LatentSums.of(mean[some], None if logvar is None else logvar[some]))
        return LatentSums.total(parts)


def identity_of(spec: Any, net: nn.Module | None) -> Json:
    """Return what a network is known by: its class, its settings but for where it lies, and the sha256 of its weights.

    Args:
        spec: the dataclass that loads it.
        net: the loaded network.
    """
    if hasattr(spec, "identity"):
        known: Json = spec.identity()
        return known
    state = {} if net is None else net.state_dict()
    settings = {key: value for key, value in spec_of(spec).items() if key not in ("path", "folder")}
    parts = [value for name, tensor in state.items() for value in (name, tensor.cpu().reshape(-1))]
    about = {"class": settings.pop("name"), "config": settings, "sha256": content_hash(*parts)}
    known_range = getattr(net, "image_range", None)
    return about if known_range is None else {**about, "image_range": list(known_range)}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
