"""References: pictures of a data set, a folder or a file, or their statistics alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, nearest
from gen.config.fields import build_with
from gen.config.spec import Json, anchored, build, name_of, names, spec_of
from gen.eval.extraction import Extraction, Rows, capabilities
from gen.eval.features import Extractor
from gen.eval.image_sets import DataImages, Images, open_images
from gen.eval.metrics import NEEDS, Estimate, Metric
from gen.eval.metrics.lib.moments import Moments
from gen.eval.record import ReferenceInfo
from gen.eval.statistics import Statistics, is_statistics, read_statistics

__all__ = ["Reference", "is_data", "measure", "measure_together", "stack", "stored"]

SPLITS = ("train", "test", "all")
MANY = 200_000  # training images from which on their features are computed only if they are asked for


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference: a split of a data set, all of a set of pictures, or statistics.

    Attributes:
        data: spec of the data set, or the name and path of what else it is.
        extractor: that features come from.
        split: "train", "test" or "all": the reference proper; "statistics".
        train: the images that a model may have memorised; None if there are none.
        test: held-out images; None without splits.
        extractor_spec: of the extractor.
        floors: scores of real images that were computed already, by the metric's spec.
        whole: all images, if the set is used whole, or those beside the statistics.
        statistics: means and covariances; None without.
        assumed: of these, see gen.eval.record.ReferenceInfo.
        options: of gen.evaluate that it was opened with, as a command line has them.
    """

    data: Json
    extractor: Extractor
    split: str
    train: Rows | None
    test: Rows | None
    extractor_spec: object
    floors: dict[str, Sequence[Estimate]] = field(default_factory=dict)
    whole: Rows | None = None
    statistics: Statistics | None = None
    assumed: str = ""
    options: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        data: object,
        split: str | None = None,
        extractor: object = None,
        how: Extraction | None = None,
        *,
        training: object = None,
        computed_by: str | None = None,
    ) -> Reference:
        """Open what samples are compared with; features are computed when they are needed.

        A reference that is a file or a folder is used whole: of a source with a `holdout`, the share that a training
        leaves out, only a spec that states it (as a run's own data do), or an object in which it is not the default,
        is split. Other sources have the splits that they have.

        Args:
            data: of gen.data, a name, a spec or an object; a folder or a file of pictures, or of statistics; a uint8
                tensor; or gen.eval.image_sets.Images.
            split: "train" or "test", the images that samples are compared with; "all" uses the set whole; None for
                "test" where there are splits.
            extractor: of gen.eval.features; None for digits_cnn where images are [1, 8, 8], else pixels.
            how: where features are kept, and by whom they are computed.
            training: images that a model may have memorised, as `data`; None for the split "train".
            computed_by: name of the extractor by which statistics were computed that do not say it themselves.

        Raises:
            UserError: for a split, a data set or an extractor that there is not, and for images that do not go with it.
        """
        if split not in (None, *SPLITS):
            raise UserError(f"unknown split {split!r}. {nearest(split, SPLITS)}")
        wanted = split
        spec = None if extractor is None else build_with("eval.features", extractor, "load", "extractor")
        statistics = None
        if isinstance(data, (str, Path)) and not is_data(data) and is_statistics(Path(data)):
            spec = _own_extractor(Path(data)) if spec is None else spec
            loaded = spec.load()
            statistics = read_statistics(Path(data), loaded.name)
            sets: dict[str, Images] = {} if statistics.images is None else {"whole": statistics.images}
            about, split = _about(data), "statistics"
            assumed = statistics.assumed(loaded.name, loaded.sha256, computed_by)
        else:
            if computed_by is not None:
                raise UserError(f"reference_extractor = {computed_by!r}: of statistics alone, {data} holds pictures")
            about, split, sets = open_sets(data, split or "test")
            first = next(iter(sets.values()))
            usual = "digits_cnn" if first.shape == (1, 8, 8) else "pixels"
            spec = build("eval.features", usual) if spec is None else spec
            loaded, assumed = spec.load(), ""
        if wanted in SPLITS[:2] and split != wanted:
            hint = ", or state a holdout in its spec" if is_data(about) else ""
            raise UserError(f"split {wanted!r}: {about['name']} is used whole, it has no splits: leave it out{hint}")
        options: dict[str, object] = {} if computed_by is None else {"reference_extractor": computed_by}
        if training is not None:
            learned_about, kind, learned = open_sets(training, "train")
            learned_images = learned["whole" if kind == "all" else "train"]
            for images in [images for images in sets.values() if images.shape != learned_images.shape][:1]:
                raise UserError(
                    f"training: {learned_images.name} holds {list(learned_images.shape)}, {images.name} "
                    f"{list(images.shape)}: not comparable"
                )
            sets["train"] = learned_images
            options["training"] = _word(learned_about)
        rows = {name: Rows(images, loaded, spec, how or Extraction()) for name, images in sets.items()}
        found = cls(about, loaded, split, rows.get("train"), rows.get("test"), spec, whole=rows.get("whole"))
        return replace(found, statistics=statistics, assumed=assumed, options=options)

    @property
    def real(self) -> Rows | None:
        """The reference images; None where statistics alone are known."""
        return {"train": self.train, "test": self.test}.get(self.split, self.whole)

    @property
    def has_splits(self) -> bool:
        """Whether the reference is one of the splits of a data set, or all of one that has some."""
        return is_data(self.data)

    @property
    def word(self) -> object:
        """The reference as `open` takes it: the spec of a data set, or a path."""
        return _word(self.data)

    @property
    def other(self) -> Rows | None:
        """The images of the other split, whose score is the floor."""
        return {"train": self.test, "test": self.train}.get(self.split) if self.test is not None else None

    @property
    def info(self) -> ReferenceInfo:
        """The reference, as records have it."""
        real, other = self.real, self.train if self.split != "train" else self.test
        about = self.statistics.about if self.statistics else {}
        shape = real.images.shape if real else tuple(about["shape"]) if about.get("shape") else None
        digest = self.statistics.fingerprint if self.statistics else real.fingerprint if real else ""
        n = about.get("n") if self.statistics else len(real) if real else None
        return ReferenceInfo(
            self.data, self.split, n, shape, digest, other.fingerprint if other else "", assumed=self.assumed
        )

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the features; UserError where they are not known."""
        if self.statistics is not None and "features" in self.statistics.moments:
            return self.statistics.moments["features"]
        if self.real is None:
            raise UserError(f"{self.data['name']} holds no mu and sigma")
        return Moments.of_rows(self.real.features)

    def check_width(self, width: int) -> None:
        """Raise UserError for samples with another number of features than the statistics, if there are any.

        Args:
            width: number of the samples' features.
        """
        moments = self.statistics.moments.get("features") if self.statistics is not None else None
        if moments is not None and len(moments.mean) != width:
            raise UserError(
                f"{self.data['name']} holds statistics of {len(moments.mean)} features, {self.extractor.name} has "
                f"{width}: name the extractor that they were computed by"
            )

    def fill(self, metrics: Sequence[Metric]) -> None:
        """Compute the rows that metrics need; all processes of a launcher have to call."""
        names = [(one.rpartition("."), metric) for metric in metrics for one in NEEDS[metric.needs]]
        for owner, rows in (("reference", self.real), ("train", self.train)):
            own = [name for (of, _, name), metric in names if of == owner and not self._known(of, name, metric)]
            if rows is not None and own:
                rows.fill(stored(own))
        floors = {metric.needs: self._floor_rows(metric) for metric in metrics}
        for needs, rows in floors.items():
            if rows is not None:
                rows.fill(stored([one.removesuffix("?") for one in NEEDS[needs] if "." not in one]))

    def inputs(self, metric: Metric, samples: Rows) -> list[Tensor | Moments | None]:
        """Return what a metric is called with, see gen.eval.metrics."""
        return [self._argument(one.removesuffix("?"), metric, samples) for one in NEEDS[metric.needs]]

    def _argument(self, name: str, metric: Metric, samples: Rows) -> Tensor | Moments | None:
        owner, _, kind = name.rpartition(".")
        if (known := self._known(owner, kind, metric)) is not None:
            return known
        rows = {"": samples, "reference": self.real, "train": self.train}[owner]
        assert rows is not None  # see obstacle
        return rows.rows(kind)

    def _known(self, owner: str, kind: str, metric: Metric) -> Tensor | Moments | None:
        """Return what statistics hold of the reference, each for what it is for."""
        if owner != "reference" or self.statistics is None:
            return None
        if getattr(metric, "moments", False) and kind in self.statistics.moments:
            return self.statistics.moments[kind]
        return self.statistics.features if kind == "features" else None

    def obstacle(self, metric: Metric, samples: Rows) -> str | None:
        """Return the reason why a metric cannot be computed of these samples, or None."""
        for one in NEEDS[metric.needs]:
            owner, _, kind = one.rpartition(".")
            rows = {"": samples, "reference": self.real, "train": self.train}[owner]
            if self._known(owner, kind, metric) is not None or kind.endswith("?"):
                continue
            if owner == "train" and rows is None:
                return "there are no training images beside the reference, see --training"
            if owner == "reference" and rows is None:
                return f"the statistics {self.data.get('path')} hold no {kind} of single images"
            if rows is None or not rows.has(kind):
                return self._lack(kind, owner)
            ours, theirs = samples.images.label_names, rows.images.label_names
            if kind == "labels" and ours and theirs and ours != theirs:
                return f"labels are {', '.join(ours[:3])} ... of the samples and {', '.join(theirs[:3])} ... here"
        return None

    def costs_much(self, metric: Metric) -> bool:
        """Return whether a metric needs the features of so many training images that it is no default one."""
        return self.train is not None and len(self.train) > MANY and "train.features" in NEEDS[metric.needs]

    def _lack(self, kind: str, owner: str) -> str:
        whose = {"": "samples", "reference": "reference images", "train": "training images"}[owner]
        no = {"logits": "is no classifier", "spatial": "has no spatial features", "embeddings": "reads no text"}
        if kind in no and kind not in capabilities(self.extractor):
            return f"the extractor {self.extractor.name} {no[kind]}"
        hints = {"targets": ', images in cond["target"] or --paired', "prompts": ", see --prompts"}
        hints |= {"measured": ', what they are restored from: cond["low"] or --measured'}
        return f"the {whose} have no {kind}{hints.get(kind, '')}"

    def _floor_rows(self, metric: Metric) -> Rows | None:
        """Return the real images that stand for samples: of the other split; held-out ones where learned ones count.

        None where real images have no such score.
        """
        arguments = NEEDS[metric.needs]
        if self.train is not None and len(self.train) > MANY:
            return None
        held_out = "train.features" in arguments or not any(one.startswith("reference") for one in arguments)
        rows = self.test if held_out else self.other
        own = [one for one in arguments if "." not in one and not one.endswith("?")]
        return rows if rows is not None and all(rows.has(one) for one in own) else None

    def floor(self, metric: Metric) -> Sequence[Estimate | None]:
        """Return a metric of real images: of the other split, or of held-out ones against what was learned.

        None where real images have no such score.
        """
        rows = self._floor_rows(metric)
        if rows is None:
            return [None] * len(metric.columns)
        key = floor_key(metric)
        if key not in self.floors:
            self.floors[key] = measure(metric, *self.inputs(metric, rows))
        return self.floors[key]

    def share_floors(self, metrics: Sequence[Metric]) -> None:
        """Compute the floors of metrics that share their work, for `floor` to return.

        Args:
            metrics: all that are computed.
        """
        rows = {metric.needs: found for metric in metrics if (found := self._floor_rows(metric)) is not None}
        new = [metric for metric in metrics if metric.needs in rows and floor_key(metric) not in self.floors]
        for metric, estimates in measure_together(new, lambda metric: self.inputs(metric, rows[metric.needs])):
            self.floors[floor_key(metric)] = estimates


def is_data(given: object) -> bool:
    """Return whether a reference is a data set of gen.data: a name, a spec or an object of one.

    Args:
        given: as Reference.open takes it.
    """
    if isinstance(given, (str, Path)):
        return str(given) in names("data") or (":" in str(given) and not Path(given).exists())
    if isinstance(given, Mapping):
        name = str(given.get("name"))
        return name in names("data") or ":" in name
    return hasattr(given, "open") and not isinstance(given, Images)


def open_sets(given: object, split: str) -> tuple[Json, str, dict[str, Images]]:
    """Open pictures, with their splits.

    Args:
        given: as Reference.open takes it.
        split: that is wanted.

    Returns:
        Their spec, the split that they have, "all" where they are used whole, and the sets "train" and "test", or
        "whole".
    """
    if isinstance(given, Images):
        return {"name": given.name}, "all", {"whole": given}
    if isinstance(given, (str, Path)) and not is_data(given) and not Path(given).exists():
        raise UserError(f"{given} is no file, no folder and no data set. {nearest(str(given), names('data'))}")
    if not is_data(given) and not isinstance(given, Mapping):
        return _about(given), "all", {"whole": open_images(given)}
    source = build_with("data", given, "shape open", "data")
    if not getattr(source, "pictures", True) or len(source.shape) != 3 or source.shape[0] not in (1, 3):
        shape = f"{name_of(type(source))} holds {list(source.shape)}"
        raise UserError(f"{shape}, latents or other tensors, no pictures: give the real pictures")
    if getattr(source, "buckets", None) is not None:  # samples are of one size
        source = replace(source, buckets=None)
    if split == "all" and "holdout" not in defaults(source):
        raise UserError(f"split 'all': {name_of(type(source))} has fixed splits. {nearest('all', SPLITS[:2])}")
    named = getattr(source, "label_names", ())
    if split == "all" or used_whole(given, source):
        source = replace(source, holdout=0.0)
        spec = anchored(spec_of(source))
        return spec, "all", {"whole": DataImages(source.open("train"), spec["name"], named)}
    spec = anchored(spec_of(source))
    return spec, split, {name: DataImages(source.open(name), f"{spec['name']} {name}", named) for name in SPLITS[:2]}


def used_whole(data: object, source: Any) -> bool:
    """Return whether a data source is used whole: its holdout is 0, or is the default that nobody stated.

    Args:
        data: name, spec or object, as it was given.
        source: what was built of it.
    """
    if "holdout" not in defaults(source) or getattr(source, "test_path", None) is not None:
        return False
    stated = "holdout" in data if isinstance(data, Mapping) else source.holdout != defaults(source)["holdout"]
    return not (stated and source.holdout)


def defaults(source: Any) -> Json:
    return {f.name: f.default for f in dataclasses.fields(source)}


def measure(metric: Metric, *arguments: object) -> Sequence[Estimate]:
    """Return a metric's estimates, one for each column; UserError if one is not finite.

    Args:
        metric: any.
        arguments: that it is called with.
    """
    return checked(metric, metric(*arguments))


def measure_together(
    metrics: Sequence[Metric], inputs: Callable[[Metric], Sequence[object]]
) -> list[tuple[Metric, Sequence[Estimate]]]:
    """Return the estimates of metrics that share their work, see gen.eval.metrics.

    Those that share none are left out, and those of which one cannot be computed: each alone says why.

    Args:
        metrics: any.
        inputs: returns the arguments of a metric.
    """
    groups: dict[tuple[Any, str], list[Metric]] = {}
    for metric in metrics:
        if (together := getattr(metric, "together", None)) is not None:
            groups.setdefault((together, metric.needs), []).append(metric)
    found: list[tuple[Metric, Sequence[Estimate]]] = []
    for (together, _), group in groups.items():
        if len(group) > 1:
            with contextlib.suppress(UserError, RuntimeError):
                results = together(group, *inputs(group[0]))
                found += [(metric, checked(metric, result)) for metric, result in zip(group, results, strict=True)]
    return found


def floor_key(metric: Metric) -> str:
    """Return the key of a metric among floors."""
    return json.dumps(spec_of(metric), sort_keys=True)


def checked(metric: Metric, result: Estimate | Sequence[Estimate]) -> Sequence[Estimate]:
    """Return what a metric returned, one estimate for each column; UserError if one is not finite."""
    estimates = [result] if isinstance(result, Estimate) else list(result)
    for column, estimate in zip(metric.columns, estimates, strict=True):
        if not torch.tensor([estimate.value, estimate.se or 0.0]).isfinite().all():
            raise UserError(f"{column.key} of {estimate.n} samples is not finite: {estimate}")
    return estimates


def stack(data: Any) -> tuple[Tensor, Tensor | None]:
    """Stack a whole data set.

    Args:
        data: the items.

    Returns:
        Images uint8 [N, C, H, W], rounded as samples are, and labels int64 [N], None without them.
    """
    found = DataImages(data, "").read(range(len(data)))
    return found["images"], found.get("labels")


def _about(given: object) -> Json:
    """Return the name and the path of what is no data set."""
    if not isinstance(given, (str, Path)):
        return {"name": "tensor"}
    path = Path(given)
    return {"name": path.name or str(path), "path": str(path.absolute())}


def stored(names: Sequence[str]) -> list[str]:
    """Return the rows that have to be computed of pictures for these: features always, and class scores from them.

    Args:
        names: of a metric's arguments.
    """
    return ["features", *(name for name in names if name in ("spatial", "embeddings", "images"))]


def _word(about: Json) -> object:
    """Return what `open` takes for a spec, or for the name and path of something else."""
    return about if is_data(about) else about.get("path", about["name"])


def _own_extractor(path: Path) -> Any:
    """Return the extractor that a file of statistics names; UserError where it names none."""
    name = str(read_statistics(path).about.get("extractor", {}).get("name", "")).partition(" ")[0]
    if name not in names("eval.features"):
        raise UserError(f"{path} holds statistics: name their extractor, --extractor inception ...")
    return build("eval.features", name)
