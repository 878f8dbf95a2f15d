"""A folder of encoded latents: its shards, what it says of itself, and which shards are whole.

manifest.json          written when all shards are there: identity, splits, shards with their sha256, statistics
latents-00000.safetensors ...   rows of the data set, in its order; or the files of another layout
statistics/            mean and variance of every position
text/                  the embedding of the empty caption, if captions are embedded
records/               the identity, and for each shard that is whole a record with the sha256 of its files and
                       its sums, from which statistics are computed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.formats import NEWEST, check_format
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json, is_sealed, sealed
from gen.config.tensor_files import Damaged, read_file, write_file
from gen.config.writing import replacing, write_json
from gen.data.lib.latent_statistics import LatentSums

__all__ = ["LatentStore", "read_manifest", "read_stored"]

MANIFEST, RECORDS, IDENTITY = "manifest.json", "records", "identity.json"
SUMS, STATISTICS = "sums.safetensors", "statistics/position.safetensors"


@dataclass(frozen=True)
class LatentStore:
    """A folder that is written, shard by shard.

    Attributes:
        folder: of the latents.
        identity: all that decides the bytes of the shards, JSON values.
    """

    folder: Path
    identity: Json

    def open(self) -> None:
        """Create the folder; UserError if it holds other files, or latents of another identity."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / RECORDS / IDENTITY
        if file.exists():
            other = read_json(file)
            check_format(other, NEWEST["latents"], file)
            self._compare({key: value for key, value in other.items() if key != "format"})
        elif any(not path.name.startswith((".", RECORDS)) for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files that gen encode did not write: choose another folder")
        else:
            write_json(file, {"format": NEWEST["latents"], **self.identity})

    def is_whole(self, index: int) -> bool:
        """Return whether a shard is there with all its bytes; UserError for the record of another store."""
        record = self._record(index)
        if not (record / "manifest.json").exists():
            return False
        info = checkpoints.read(record)
        if info.get("identity") != sealed(self.identity)["sha256"] or info.get("index") != index:
            raise UserError(f"{record} is of another shard or store: remove it")
        files = {self.folder / name: sha256 for name, sha256 in info["shard"].items()}
        return all(file.is_file() and file_sha256(file) == sha256 for file, sha256 in files.items())

    def add(self, index: int, files: Mapping[str, str], sums: LatentSums, labels: Tensor | None) -> None:
        """Record that a shard is whole.

        Args:
            index: of the shard.
            files: sha256 of its files, by their names in the folder.
            sums: of its latents.
            labels: of its rows, or None.
        """
        about = {"identity": sealed(self.identity)["sha256"], "index": index, "shard": dict(files)}
        checkpoints.write(
            self._record(index), {SUMS: sums.tensors() | ({} if labels is None else {"labels": labels})}, about
        )

    def missing(self, shards: int) -> int:
        """Return how many of so many shards have no record."""
        return sum(not (self._record(i) / "manifest.json").exists() for i in range(shards))

    def sums(self, shards: int) -> LatentSums:
        """Return the sums over all shards."""
        return LatentSums.total(LatentSums.from_tensors(self._tensors(i)) for i in range(shards))

    def labels(self, shards: int) -> list[int] | None:
        """Return the labels of all rows; None without."""
        found = [self._tensors(i).get("labels") for i in range(shards)]
        return [label for some in found if some is not None for label in some.tolist()] or None

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> Json:
        """Write a file of tensors beside the shards, and return what `read_stored` reads it by.

        Args:
            name: of the file, in the folder.
            tensors: by name.
        """
        with replacing(self.folder / name) as partial:
            return {"file": name, "sha256": write_file(partial, tensors)}

    def finish(self, shards: int, about: Json) -> None:
        """Write statistics and manifest of a store of which all shards are there.

        Args:
            shards: their number.
            about: what else the manifest says.
        """
        total = self.sums(shards)
        position = self.put(STATISTICS, {"mean": total.mean, "var": total.position_var})
        infos = [checkpoints.read(self._record(i), verify=False) for i in range(shards)]
        statistics = {
            "count": total.count,
            "channel": {"mean": total.channel_mean.tolist(), "var": total.channel_var.tolist()},
            "position": position,
        }
        files = [{"file": name, "sha256": value} for info in infos for name, value in info["shard"].items()]
        body = {"format": NEWEST["latents"], "kind": "latents", **self.identity, **about}
        write_json(self.folder / MANIFEST, sealed({**body, "statistics": statistics, "files": files}))

    def _tensors(self, index: int) -> dict[str, Tensor]:
        return checkpoints.read_tensors(self._record(index), SUMS, checkpoints.read(self._record(index), verify=False))

    def _record(self, index: int) -> Path:
        return self.folder / RECORDS / f"{index:05d}"

    def _compare(self, theirs: Json) -> None:
        differ = [key for key in {**self.identity, **theirs} if self.identity.get(key) != theirs.get(key)]
        if differ:
            ours, there = ({key: values.get(key) for key in differ} for values in (self.identity, theirs))
            said = ", ".join(f"{key} {_short(there[key])} there, {_short(ours[key])} here" for key in differ)
            raise UserError(f"{self.folder} holds other latents ({said}): choose another folder")


def read_stored(folder: Path, about: Json) -> dict[str, Tensor]:
    """Read a file of tensors that a manifest names.

    Args:
        folder: of the latents.
        about: its "file" and "sha256".

    Raises:
        UserError: if it is damaged or not there.
    """
    try:
        return read_file(folder / about["file"], about["sha256"])
    except (Damaged, OSError):
        raise UserError(f"{folder / about['file']} is damaged or missing: run its gen encode again") from None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_manifest(folder: Path) -> Json | None:
    """Return the manifest of a folder of latents that gen wrote; None for other folders and files.

    Args:
        folder: the folder.

    Raises:
        UserError: for a folder that is not finished, and for a manifest that is damaged.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / RECORDS / IDENTITY).is_file():
            raise UserError(f"{folder} is not finished: run its gen encode again")
        return None
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != "latents":
        return None
    check_format(manifest, NEWEST["latents"], f"the latents {folder}")
    if not is_sealed(manifest):
        raise UserError(f"{folder / MANIFEST} is damaged: its content does not match its own sha256")
    return manifest
