"""A data set of one's own, given as an object: PyTorch's map-style Dataset, or whatever has a length and items."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import name_of
from gen.data.lib.tensors import check_split, content_hash, hold_out

__all__ = ["GivenData"]

LOOKED_AT = 8  # items that a warning about the range goes by


@dataclass(frozen=True)
class GivenData:
    """A map-style data set given as an object: Run(data=my_dataset), or Run(data=GivenData(my_dataset, ...)).

    An item is x alone, (x,) or (x, label), or a dict of tensors: "x", "y" for a label, and further conditions, which
    the network gets batched. Pictures are uint8 [C, H, W], or floats in `value_range`; both are read as [-1, 1].

    A checkpoint says of what class the object was, and a run that goes on must be given it again. Fingerprint: the data
    set's own attribute `fingerprint`, if it has that; class, length and shape; and the fields here. The content is not
    read, as it may be augmented at random: who changes it without a fingerprint of its own goes unnoticed.

    Items of several heights and widths lie in buckets: the data set has an attribute `buckets`, a number from 0 for
    each item, all items of a bucket have one shape, and a batch is of one bucket (gen.training.order.BucketOrder).

    Attributes:
        data: the data set; not stored.
        test: another one that is all of "test", while `data` is all of "train"; not stored.
        value_range: lowest and highest value of float pictures; None for latents and points, which stay as they are.
        holdout: the share held out for "test", in [0, 1); without effect if there is a `test`.
        classes: number of labels; 0 for that of the data set's attribute `classes`, a number or a list of names.
        kind, length, shape, label_names, sizes: of the object; nothing to be given. `shape` is that of an item, in the
            largest bucket if there are any; `sizes` are height and width of each bucket.
    """

    data: Any = field(compare=False, repr=False, metadata={"saved": False})
    test: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    holdout: float = 0.1
    classes: int = 0
    kind: str = ""
    length: int = 0
    shape: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, holdout="[0, 1)", classes="[0, inf)", length="[0, inf)")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UserError(f"GivenData: value_range = {list(self.value_range)}; the lowest value, then the highest")
        if self.data is None:
            if not self.kind:
                raise UserError("GivenData: there is no data set; it is given in Python, Run(data=my_dataset)")
            return
        for given in (self.data, self.test):
            if given is not None:
                check_map_style(given)
        self._set(kind=name_of(type(self.data)), length=len(self.data))
        self._set(sizes=(), shape=())
        first = self._tensors(self.data[0], 0)
        self._set_shapes(tuple(first["x"].shape))
        if "y" in first:
            self._set_classes()
        self._look(first["x"].is_floating_point())

    @property
    def buckets(self) -> int | None:
        """The number of buckets; None without."""
        return len(self.sizes) or None

    @property
    def bucket_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket; of the only size without buckets."""
        return self.sizes or (self.shape[1:],)  # type: ignore[return-value] # of pictures

    @property
    def pictures(self) -> bool:
        """Whether items are pictures."""
        return self.value_range is not None

    def open(self, split: str) -> GivenItems:
        """Open "train" or "test"."""
        check_split(split)
        if self.data is None:
            raise UserError(f"the data were given as an object of {self.kind}: give it again, Run(data=...)")
        data = self.test if split == "test" and self.test is not None else self.data
        rows: Sequence[int] = range(len(data))
        if self.test is None:
            rows = hold_out(self.kind, split, len(data), self.holdout)
        options = f"{split} {self.holdout} {self.value_range} {self.classes} {self.shape} {len(data)}"
        numbers = self._buckets_of(data) if self.sizes else None
        options += "" if numbers is None else f" {self.sizes} {numbers.tolist()}"
        own = getattr(data, "fingerprint", "")
        return GivenItems(
            self, data, rows, content_hash("given", self.kind, options, own if isinstance(own, str) else ""), numbers
        )

    def _buckets_of(self, data: Any) -> np.ndarray:
        """Return the bucket of each item of a data set."""
        numbers = np.asarray(getattr(data, "buckets", ()))
        if numbers.shape != (len(data),) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
            raise UserError(
                f"{name_of(type(data))}: buckets are {shown(getattr(data, 'buckets', None))}; allowed: a number from 0 "
                f"for each of the {len(data)} items"
            )
        if self.sizes and numbers.max() >= len(self.sizes):
            raise UserError(f"{name_of(type(data))}: an item is of bucket {numbers.max()}, of {len(self.sizes)}")
        return numbers

    def _set_shapes(self, shape: tuple[int, ...]) -> None:
        """Set the shape of items, and the sizes of buckets if there are any."""
        if getattr(self.data, "buckets", None) is None:
            self._set(shape=shape)
            return
        numbers = self._buckets_of(self.data)
        counts = np.bincount(numbers)
        if not counts.all() or len(shape) != 3:
            problem = f"no item is of bucket {int(counts.argmin())}" if len(shape) == 3 else f"items are {list(shape)}"
            raise UserError(f"{self.kind}: {problem}; buckets are counted from 0, and are of items [C, H, W]")
        firsts = [int(i) for i in np.unique(numbers, return_index=True)[1]]
        shapes = [tuple(self._tensors(self.data[i], i)["x"].shape) for i in firsts]
        self._set(shape=shapes[int(counts.argmax())], sizes=tuple(one[1:] for one in shapes))

    def _set(self, **values: object) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def item(self, raw: object, i: int, bucket: int | None = None) -> dict[str, Tensor]:
        """Return item i as `gen.data.DataSet` has it.

        Args:
            raw: as the data set gives it.
            i: its index, for the message.
            bucket: of the item; None without buckets.

        Raises:
            UserError: names the item, for other types, shapes, values and labels.
        """
        item = self._tensors(raw, i)
        x = item["x"] = self._scaled(item["x"], i)
        expected = self.shape if bucket is None else (self.shape[0], *self.sizes[bucket])
        if tuple(x.shape) != expected:
            where = "that of item 0" if bucket is None else f"those of bucket {bucket}"
            raise UserError(f"{self.kind}: x of item {i} is {list(x.shape)}, {where} {list(expected)}")
        if "y" in item:
            y = item["y"]
            if y.is_floating_point() or y.ndim or not 0 <= int(y) < self.classes:
                raise UserError(
                    f"{self.kind}: the label of item {i} is {shown(y.tolist())}; allowed: 0 .. {self.classes - 1}"
                )
            item["y"] = y.long()
        return item

    def _tensors(self, raw: object, i: int) -> dict[str, Tensor]:
        """Return an item's values by name."""
        if isinstance(raw, (tuple, list)) and len(raw) in (1, 2):
            raw = dict(zip("xy", raw, strict=False))
        given = dict(raw) if isinstance(raw, Mapping) else {"x": raw}
        if "x" not in given or not all(isinstance(key, str) for key in given):
            raise UserError(f'{self.kind}: item {i} has {", ".join(map(str, given))}, and no "x", which is learned')
        tensors = {}
        for key, value in given.items():
            where = f"{self.kind}: {key} of item {i} is {type(value).__name__}"
            if key == "index":
                raise UserError(f"{where}, and the name is gen's own: take another")
            try:
                tensors[key] = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise UserError(f"{where}, expected a tensor, an array or a number") from None
        return tensors

    def _scaled(self, x: Tensor, i: int) -> Tensor:
        """Return x as float32, pictures in [-1, 1]."""
        where = f"{self.kind}: x of item {i}"
        if x.dtype == torch.uint8 and self.value_range is not None:
            return (x.float() - 127.5) / 127.5
        if not x.is_floating_point():
            raise UserError(f"{where} is {x.dtype}; pictures are uint8 or floats, latents and points floats")
        if self.value_range is None:
            return x.float()
        (low, high), (least, most) = self.value_range, (float(v) for v in x.aminmax())
        slack = 1e-3 * (high - low)
        if least < low - slack or most > high + slack:
            raise UserError(
                f"{where} runs from {least:.4g} to {most:.4g}, and value_range is {[low, high]}: state the range of "
                "your floats, GivenData(my_dataset, value_range=(0, 1)), or None for latents and points"
            )
        return x.float() if (low, high) == (-1, 1) else (x.float() - low) / (high - low) * 2 - 1

    def _set_classes(self) -> None:
        """Set the number of classes, and their names if the data set has some."""
        own = getattr(self.data, "classes", None)
        listed = list(own) if isinstance(own, (list, tuple)) else []
        count = self.classes or len(listed) or own
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(
                f"{self.kind} has labels and does not say how many: give it an attribute `classes`, a number or a list "
                "of names, or GivenData(my_dataset, classes=10)"
            )
        named = len(listed) == count and all(isinstance(name, str) for name in listed)
        self._set(classes=count, label_names=tuple(listed) if named else ())

    def _look(self, floats: bool) -> None:
        """Check some items, and warn of pictures that seem to lie in [0, 1] though they are said to lie in [-1, 1]."""
        step = max(1, self.length // LOOKED_AT)
        every = GivenItems(self, self.data, range(self.length), "", self._buckets_of(self.data) if self.sizes else None)
        items = [every[i] for i in range(0, self.length, step)][:LOOKED_AT]
        if floats and self.value_range == (-1.0, 1.0) and all(bool((item["x"] >= 0).all()) for item in items):
            warnings.warn(
                f"{self.kind}: none of {len(items)} pictures has a value below 0, and value_range is [-1, 1]: if they "
                "lie in [0, 1], as ToTensor gives them, say GivenData(my_dataset, value_range=(0, 1))",
                stacklevel=4,
            )


@dataclass(frozen=True, eq=False)
class GivenItems:
    """Items of some rows of a data set that was given; `numbers` are the buckets of all its items, or None."""

    source: GivenData
    data: Any
    rows: Sequence[int]
    fingerprint: str
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = self.rows[i]
        return self.source.item(self.data[row], row, None if self.numbers is None else int(self.numbers[row]))

    @property
    def buckets(self) -> np.ndarray | None:
        """The bucket of each item, [len]; None without buckets."""
        return None if self.numbers is None else self.numbers[np.array(self.rows, np.int64)]

    def bucket_counts(self) -> dict[str, int]:
        """Return how many items each bucket has that has any, by "HxW"; {} without buckets."""
        if self.buckets is None:
            return {}
        counts = np.bincount(self.buckets, minlength=len(self.source.sizes))
        return {f"{h}x{w}": int(count) for (h, w), count in zip(self.source.sizes, counts, strict=True) if count}

    def where(self, i: int) -> str:
        """Return the item of the data set that item i is, in words."""
        return f"item {self.rows[i]} of {self.source.kind}"


def check_map_style(data: object) -> None:
    """Raise UserError for what has no length and no items by index, or is empty.

    Args:
        data: what was given as a data set.
    """
    name = type(data).__name__
    if hasattr(data, "dataset") and not hasattr(data, "__getitem__"):
        raise UserError(f"data is a {name}: give its data set, loader.dataset; batches and workers are the run's")
    plain = isinstance(data, (str, bytes, Mapping, type))
    if plain or isinstance(data, IterableDataset) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(f"data is {shown(data) if plain else name}; a data set has len(data) and data[i] (map-style)")
    if not len(data):
        raise UserError(f"data, a {name}, is empty")
