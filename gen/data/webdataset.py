"""WebDataset's tar shards of pictures, read at random without unpacking them."""

from __future__ import annotations

import json
import re
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen.config.errors import UserError, counted
from gen.config.reading import parse_json
from gen.data.lib.archives import MAX_BYTES, PackedWords, Spans, is_plain
from gen.data.lib.cache_file import CacheFile
from gen.data.lib.checksums import check_sums
from gen.data.lib.decoding import SUFFIXES
from gen.data.lib.labels import named_labels
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["WebDataset"]

BESIDE = (".cls", ".txt", ".json")  # members beside a picture that are read
MAX_TEXT = 2**20  # bytes of one
RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")


class Sample(NamedTuple):
    """A picture of a shard, with label and caption of the members of its key; None without."""

    name: str
    start: int
    length: int
    label: Any = None
    caption: Any = None


@dataclass(frozen=True)
class WebDataset(PictureSource):
    """Pictures (png, jpg, jpeg, webp, bmp) of .tar shards, in order of shard and of position in it.

    Members of one key, the path up to the first dot of the file's name, belong together: a picture, its label (.cls,
    or "label" in .json; a number or a class's name) and its caption (.txt, or "caption" in .json). The shards' lists of
    members are read once and remembered, after which every picture is read by its offset: order, splits and resumption
    are those of all other data. Members of other kinds are left out, and a warning says how many. A SHA256SUMS beside
    the shards is compared. Fields and reading are those of every source of pictures (gen.data.lib.pictures); `path` is
    a folder of .tar files, one such file, or a range of them such as "train-{000000..000146}.tar". Raises UserError, in
    one line, for compressed or damaged shards, for a key with several pictures, and for labels that only some pictures
    have.
    """

    def contents(self, path: Path) -> Contents:
        """List the shards' pictures, labels and captions.

        Args:
            path: of the shards.
        """
        shards = shards_of(path)
        listings = [_remembered(shard) for shard in shards]
        samples = [sample for listing, _ in listings for sample in listing]
        if not samples:
            raise UserError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
        if others := sum(left_out for _, left_out in listings):
            words = counted(others, "member of another kind", "members of other kinds")
            warnings.warn(f"{path}: left out {words} or without a picture", stacklevel=2)
        for shard in shards:
            check_sums(shard, {shard: None})
        spans = _spans(shards, [listing for listing, _ in listings])
        labels, names = None, tuple[str, ...]()
        if _in_all(spans, [sample.label for sample in samples], "label"):
            try:
                labels, names = named_labels([sample.label for sample in samples])
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        captions = None
        if _in_all(spans, [sample.caption for sample in samples], "caption"):
            captions = PackedWords(str(sample.caption) for sample in samples)
        return Contents(spans, labels, names, captions)


def shards_of(path: Path) -> list[Path]:
    """Return the shards that a path stands for, in order.

    Args:
        path: a folder, a file, or a range of files.

    Raises:
        UserError: if one is not there.
    """
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise UserError(f"{path} holds no .tar files")
        return shards
    if match := RANGE.fullmatch(str(path)):
        before, first, last, after = match.groups()
        numbers = range(int(first), int(last) + 1)
        shards = [Path(f"{before}{number:0{len(first)}}{after}") for number in numbers]
    else:
        shards = [path]
    if missing := next((shard for shard in shards if not shard.is_file()), None if shards else path):
        raise UserError(f"{missing} is not there; give a folder of .tar files, one of them, or a range such as "
                        "train-{000000..000146}.tar")  # fmt: skip
    return shards


def _remembered(shard: Path) -> tuple[list[Sample], int]:
    """Return a shard's samples, and how many members are left out: as remembered, or else listed now."""
    status = shard.stat()
    about = json.dumps([status.st_size, status.st_mtime_ns])
    cache = CacheFile("shard", str(shard))
    lines = cache.read()
    if lines[:1] == [about]:
        return [Sample(*json.loads(line)) for line in lines[2:]], int(lines[1])
    samples, left_out = _listed(shard)
    cache.write([about, str(left_out), *map(json.dumps, samples)])
    return samples, left_out


def _listed(shard: Path) -> tuple[list[Sample], int]:
    """Read a shard's list of members."""
    samples, left_out = dict[str, Sample](), 0
    try:
        with tarfile.open(shard, "r:") as opened:
            for name, member in _files(opened):
                key, suffix = _split(name)
                sample = samples.get(key, Sample("", 0, 0))
                if suffix.endswith(SUFFIXES):
                    if sample.name:
                        raise UserError(f"{shard}: the key {key} has two pictures, {sample.name} and {name}")
                    sample = sample._replace(name=_checked(shard, name, member.size, MAX_BYTES))
                    samples[key] = sample._replace(start=member.offset_data, length=member.size)
                elif suffix in BESIDE:
                    _checked(shard, name, member.size, MAX_TEXT)
                    text = opened.extractfile(member)
                    assert text is not None
                    samples[key] = sample._replace(**_beside(f"{shard}: {name}", suffix, text.read()))
                else:
                    left_out += 1
            with shard.open("rb") as stream:  # the list ends in silence where a header is cut off or damaged
                stream.seek(opened.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise UserError(f"{shard} is cut off or damaged at byte {opened.offset:,}")
    except (tarfile.TarError, OSError, EOFError) as error:
        packed = shard.read_bytes()[:2] == b"\x1f\x8b" if shard.stat().st_size < MAX_BYTES else False
        hint = ": it is compressed, and so cannot be read at random; unpack it by gunzip" if packed else f" ({error})"
        raise UserError(f"{shard} cannot be read as a tar{hint}") from error
    found = [sample for sample in samples.values() if sample.name]
    return found, left_out + len(samples) - len(found)


def _files(opened: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    while (member := opened.next()) is not None:
        if member.isfile():
            yield member.name.removeprefix("./"), member


def _split(name: str) -> tuple[str, str]:
    """Return a member's key and its suffix, which begins at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    return folder + slash + key, (dot + suffix).lower()


def _checked(shard: Path, name: str, size: int, most: int) -> str:
    if not is_plain(name):
        raise UserError(f"{shard}: {name!a}: the name is not UTF-8 or holds control characters; rename it")
    if size > most:
        raise UserError(f"{shard}: {name} has {size:,} bytes; at most {most:,} are read")
    return name


def _beside(where: str, suffix: str, data: bytes) -> dict[str, Any]:
    """Return what a member beside a picture states."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no UTF-8") from error
    if suffix != ".json":
        return {"label" if suffix == ".cls" else "caption": text}
    given = parse_json(text, where)
    given = given if isinstance(given, dict) else {}
    return {key: given[key] for key in ("label", "caption") if isinstance(given.get(key), (int, str))}


def _spans(shards: list[Path], listings: list[list[Sample]]) -> Spans:
    stamps = [f"{shard.stat().st_size}-{shard.stat().st_mtime_ns}" for shard in shards]
    rows = [(k, sample) for k, listing in enumerate(listings) for sample in listing]
    return Spans(
        list(map(str, shards)),
        PackedWords(f"{shards[k].name}/{sample.name}" for k, sample in rows),
        PackedWords(f"{sample.start}-{sample.length}-{stamps[k]}" for k, sample in rows),
        np.array([k for k, _ in rows], np.int32),
        np.array([sample.start for _, sample in rows], np.int64),
        np.array([sample.length for _, sample in rows], np.int64),
        np.zeros(len(rows), np.int64),
        zipped=False,
    )


def _in_all(spans: Spans, values: list[Any], what: str) -> bool:
    """Return whether every picture has a label or a caption; UserError if only some do."""
    lacking = [row for row, value in enumerate(values) if value is None]
    if lacking and len(lacking) < len(values):
        raise UserError(f"{spans.where(lacking[0])} has no {what}, and {len(values) - len(lacking)} others have one")
    return not lacking
