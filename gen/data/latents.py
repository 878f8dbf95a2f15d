"""Latents that an autoencoder encoded beforehand: by `gen encode`, or in the layouts of other repositories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.data.lib.latent_files import open_files
from gen.data.lib.latent_rows import EXTRAS, LatentRows, open_shards
from gen.data.lib.latent_scale import LatentScale, stored_statistics
from gen.data.lib.latent_store import read_manifest, read_stored
from gen.data.lib.prompts import text_fields
from gen.data.lib.tensors import SPLITS, check_labels, content_hash, hold_out
from gen.diffusion.noise import Noise, derive

__all__ = ["Latents"]

HOLDOUT = 0.1


@dataclass(frozen=True)
class Latents:
    """A folder that gen encode wrote; a .safetensors file or a folder of them; or the tree of another repository.

    | layout         | files                                                     | kept of each latent              |
    | -------------- | --------------------------------------------------------- | -------------------------------- |
    | gen            | `latents-00000.safetensors`, manifest.json                | mean and log variance, or itself |
    | LightningDiT   | `latents_rank00_shard000.safetensors`, latents_stats.pt   | one draw                         |
    | fast-DiT       | `*_features/0.npy`, `*_labels/0.npy`                      | one draw times 0.18215           |
    | REPA, EDM2     | dataset.json, `00000/img-mean-std-00000000.npy`, or zip   | mean and standard deviation      |
    | MAR            | `CLASS/NAME.npz` with moments, moments_flip               | mean and log variance            |

    Items are (latent - shift) * scale as float32. Where a distribution is kept, training draws a latent anew each time
    that an item is read, by the run's seed, the epoch and the item alone; data[i] is always the same draw.
    Labels are int64 or int32. A row is read when its item is; each shard is opened once per process. Fingerprint: the
    bytes of every file, in order of row, with split and every field that changes items. A gen manifest, or a SHA256SUMS
    (`sha256sum *.safetensors > SHA256SUMS`) in the folder, is compared in the one reading that the fingerprint takes
    anyway. Raises UserError, in one line, for files that are missing, damaged or laid out differently.

    Attributes:
        path: file or folder.
        scale, shift: a number, or one for each channel, such as 1 / std and mean of latents that are standardised;
            0.18215 and 0 suit the autoencoder of Stable Diffusion, 0.2325 MAR's.
        standardise: takes mean and deviation that are stored with the latents, of each "channel" or each "position"
            [C, H, W], or those that their "autoencoder" states: items are (latent - mean) / std * scale, and shift
            stays 0.
        posterior: "sample" draws from the distribution of a latent, "mean" takes its mean.
        holdout: the share held out for "test", in [0, 1); None for the splits that gen encode kept, else 0.1.
        flip: True adds the latents of the mirrored images to "train", which makes it twice as long.
        num_classes: number of labels; None for the manifest's, or the highest label + 1.
        features: True gives each item its `features` [T, D] (of the mirrored image, `features_flip`), an encoder's
            tokens for objectives that align with it (gen.models.encoders.stored).
        text: True gives each item the embedding of its caption, `text` [T, D], and `text_mask` [T], which is False at
            padding (gen encode --text); the source's `null_text` is that of the empty caption.
        image_range: lowest and highest value of the images that were encoded, where the files do not tell: (-1, 1) for
            REPA, (0, 1) for EDM2, whose files look alike. Samples are decoded accordingly.
    """

    pictures = False

    path: str
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    standardise: Literal["none", "channel", "position", "autoencoder"] = "none"
    posterior: Literal["sample", "mean"] = "sample"
    holdout: float | None = None
    flip: bool = False
    num_classes: int | None = None
    features: bool = False
    text: bool = False
    image_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_fields(self, scale="(0, inf)", shift="(-inf, inf)", holdout="[0, 1)", num_classes="[0, inf)")
        if self.standardise != "none" and (self.shift != 0 or isinstance(self.scale, tuple)):
            raise UserError(
                f"Latents: standardise = {self.standardise} takes the shift and a scale for each from the latents; "
                "give neither, or one number as the scale of what is standardised"
            )
        if self.image_range is not None and not self.image_range[0] < self.image_range[1]:
            raise UserError(f"Latents: image_range = {list(self.image_range)}; the lowest value, then the highest")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._rows.shape

    @property
    def classes(self) -> int:
        labels = self._rows.labels
        if labels is None:
            if self.num_classes is not None:
                raise UserError(f"{self.path} has no labels, but num_classes is {self.num_classes}")
            return 0
        known = self.num_classes or (self._manifest or {}).get("classes") or None
        return check_labels(f"{self.path}: labels", labels, known if self.num_classes is None else self.num_classes)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels; () where they have none."""
        return self._rows.label_names

    def open(self, split: str) -> LatentSet:
        """Open "train" or "test"."""
        labels = None if self.classes == 0 else self._rows.labels
        kept, holdout = self._kept_splits, HOLDOUT if self.holdout is None else self.holdout
        if self.holdout is None and kept is not None:
            if split not in SPLITS:
                raise UserError(f"unknown split {split!r}. Allowed: {', '.join(SPLITS)}.")
            rows = list(range(kept["train"]) if split == "train" else range(kept["train"], len(self._rows)))
            options = f"{split} kept"
        else:
            rows = hold_out(self.path, split, len(self._rows), holdout, None if labels is None else labels.tolist())
            options = f"{split} {holdout}"
        flip = self.flip and split == "train"
        options += f" {self.scale} {self.shift} {self.flip}" + "".join(f" {extra}" for extra in self._extras)
        options += "" if self.standardise == "none" else f" {self.standardise}"
        options += " mean" if self.posterior == "mean" else ""
        fingerprint = content_hash("latents", options, *self._rows.hashes)
        draws = self._rows.kind != "latents" and self.posterior == "sample"
        return LatentSet(self._rows, rows, labels, flip, self._scale, draws, fingerprint, self._extras)

    @property
    def null_text(self) -> dict[str, Tensor]:
        """The condition of the empty caption, `text` [T, D] and `text_mask` [T]; UserError for latents without text."""
        if (about := (self._manifest or {}).get("text")) is None:
            raise UserError(f"{self.path} has no text: encode it by gen encode --text")
        return read_stored(Path(self.path), about)

    @property
    def text_fields(self) -> Json:
        """The fields of a model of the captions; {} unless items have text."""
        if not self.text:
            return {}
        return text_fields(self.null_text)

    @property
    def pooled(self) -> bool:
        """Whether items have `pooled` [P], one vector for all of the caption: what their encoder had of it."""
        return self.text and "text" in (self._manifest or {}) and "pooled" in self.null_text

    @property
    def text_encoder(self) -> Json | None:
        """What the encoder of the captions is known by; None where that is not known."""
        known: Json = (self._manifest or {}).get("text") or {}
        return known.get("encoder")

    @property
    def _extras(self) -> tuple[str, ...]:
        return tuple(extra for extra in EXTRAS if getattr(self, extra))

    @property
    def latent(self) -> tuple[Json, dict[str, Tensor]]:
        """What a checkpoint says of its latents, and the scale and shift of every position where it has them."""
        about, known = self._scale.json(), self.image_range or self._rows.image_range
        about |= {} if self._manifest is None else {"autoencoder": self._manifest["autoencoder"]}
        about |= {} if known is None else {"image_range": list(known)}
        return about, self._scale.tensors()

    @cached_property
    def _scale(self) -> LatentScale:
        if self.standardise == "none":
            return LatentScale.given(self.path, self.scale, self.shift, self.shape[0])
        assert not isinstance(self.scale, tuple)  # see __post_init__
        mean, var = stored_statistics(Path(self.path), self._manifest, self.standardise, self.shape)
        return LatentScale(self.scale / var.sqrt(), mean)

    @cached_property
    def _manifest(self) -> Json | None:
        return read_manifest(Path(self.path))

    @property
    def _kept_splits(self) -> Json | None:
        splits: Json = (self._manifest or {}).get("splits", {})
        return splits if all(splits.get(split) for split in SPLITS) else None

    @cached_property
    def _rows(self) -> LatentRows:
        path = Path(self.path)
        if not path.exists():
            raise UserError(
                f"no such file or folder of latents: {path}; gen encode makes them, path says where they are"
            )
        layout = (self._manifest or {}).get("layout")
        rows: LatentRows | None = None
        if layout not in ("gen", "lightningdit"):
            rows = open_files(path, self.flip, self._extras)
        if rows is None:
            rows = open_shards(path, self.flip, self._extras, self._manifest)
        elif rows.image_range is None:
            encoded = (self._manifest or {}).get("autoencoder", {}).get("image_range") or self.image_range
            if encoded is None:
                raise UserError(
                    f"{path}: REPA encodes images in [-1, 1], EDM2 in [0, 1], and their files look alike: say which, "
                    "image_range = [-1, 1] or [0, 1]"
                )
            rows.image_range = (encoded[0], encoded[1])
        if rows.image_range and self.image_range and rows.image_range != self.image_range:
            raise UserError(f"{path}: image_range is {list(rows.image_range)} there, {list(self.image_range)} here")
        return rows


@dataclass(eq=False)
class LatentSet:
    """Items {"x": float32 [C, H, W], "y": int64 0-d} of some rows; "features" [T, D], "text", "text_mask", "pooled".

    With flip, all rows come again, mirrored. No "y" without labels, and only those `extras` that are named. With draws,
    x is drawn from a normal distribution: by a key, or by one that belongs to the item.
    """

    source: LatentRows
    rows: list[int]
    y: Tensor | None
    flip: bool
    scale: LatentScale
    draws: bool
    fingerprint: str
    extras: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows) * (2 if self.flip else 1)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        i = range(len(self))[i]  # as a list has it: negative from the end, IndexError past it
        return self.draw(i, derive("latents", self.rows[i % len(self.rows)], i >= len(self.rows)))

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i, its latent drawn by the noise of a key."""
        return {name: values[0] for name, values in self.draw_batch([i], [key]).items()}

    def draw_batch(self, items: Sequence[int], keys: Sequence[int]) -> dict[str, Tensor]:
        """Return items, stacked, each latent drawn by the noise of its key.

        Args:
            items: indices in [0, len).
            keys: one for each.
        """
        n = len(self.rows)
        order = sorted(range(len(items)), key=lambda j: items[j] >= n)  # mirrored ones last: they have other columns
        plain = sum(i < n for i in items)
        parts = [
            self._read([self.rows[items[j] % n] for j in some], [keys[j] for j in some], suffix)
            for some, suffix in ((order[:plain], ""), (order[plain:], "_flip"))
            if some
        ]
        if len(parts) == 1:
            return parts[0]
        back = torch.tensor(order).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _read(self, rows: Sequence[int], keys: Sequence[int], suffix: str) -> dict[str, Tensor]:
        """Return the items of rows, mirrored or not."""
        kind = self.source.kind
        main = ("latents" if kind == "latents" else "mean") + suffix
        names = {"features": ("features" + suffix,), "text": ("text", "text_mask"), "pooled": ("pooled",)}
        extras = [name for extra in self.extras for name in names[extra]]
        found = self.source.read([main, *([kind + suffix] if self.draws else []), *extras], rows)
        z = found[main]
        if self.draws:
            spread = found[kind + suffix]
            std = (0.5 * spread).exp() if kind == "logvar" else spread
            z = z + std * Noise(tuple(keys)).normal("posterior", z.shape[1:])
        items = {"x": self.scale(z, self.source.unit)}
        if self.y is not None:
            items["y"] = self.y[torch.tensor(rows)]
        return items | {name.removesuffix("_flip"): found[name] for name in extras}

    def where(self, i: int) -> str:
        """Return the file and the row of item i, in words."""
        return self.source.where(self.rows[i % len(self.rows)])
