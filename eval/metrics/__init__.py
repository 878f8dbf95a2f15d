"""Metrics: one file each, from a set of samples and a set of real images to a number with its standard error.

A metric is a frozen dataclass whose fields are its options, and which declares, as class attributes, the columns that
it fills and the inputs that it needs; `Metric` below is the whole contract. Evaluation, csv, tables and pages read
these declarations, and nothing else names a metric:

    @dataclass(frozen=True)
    class Sharpness:
        '''The mean absolute difference of neighbouring pixels.'''

        columns = (Column("sharpness", "Sharpness", higher_is_better=True),)
        needs = "images"

        def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
            x = samples.flatten(1).float()
            x = (x[:, 1:] - x[:, :-1]).abs().mean(1)
            return Estimate(float(x.mean()), float(x.std()) / len(x) ** 0.5, len(x))

A file in this folder (the first name of its `__all__`) is a default metric, unless it says `default = False`: it is
computed wherever its inputs can be had. One of `pairs` or `posterior` is computed wherever these are given, unless it
says `named = True`. Those, and one from elsewhere, are asked for by name: gen.evaluate(..., metrics=["fid",
"my_package.my_module:Sharpness"]), `gen evaluate RUN --metrics fid,my_package.my_module:Sharpness`, or as an object.

What `needs` may be, and what the metric is then called with, argument by argument (all on the CPU, rows in the order of
the samples' indices):

    needs              arguments
    features           features [N, D] of the extractor; those of the reference images [M, D]
    train_features     features; those of the training images [M, D]
    split_features     features; those of the reference images; those of the training images
    labelled_features  features; labels int64 [N]; features of the reference images; their labels int64 [M]
    spatial            spatial features [N, S] of the extractor; those of the reference images
    predictions        class scores [N, K] of the extractor, and nothing else
    logits             class scores [N, K]; the labels asked for, int64 [N]
    text               embeddings [N, D] of the samples; those of their prompts [N, D]
    images             images uint8 [N, C, H, W]; those of the reference
    labelled_images    images uint8 [N, C, H, W]; labels int64 [N], or None where they have none
    pairs              images uint8 [N, C, H, W]; those that sample i should be, uint8 [N, C, H, W]
    posterior          the same; the number of the degraded picture that sample i restores, int64 [N]
    measured           images uint8 [N, C, H, W]; what each is a restoration of, floats [N, ...]

Class scores need an extractor with a classifier's head, spatial features one with `spatial`, embeddings of text one
with `text`; `pairs` needs samples whose cond["target"] holds an image each, as those of a run that restores have, or
`--paired TRUTH`; `posterior` several samples of each, `--each`; `measured` cond["low"] or `--measured Y`. A metric
whose inputs cannot be had is left out of the default, and refused if it was asked for by name. A metric with `moments =
True` takes, in place of the reference's rows, what files of statistics hold: the `Moments` of the rows. The real
images' own score, the floor of a leaderboard, is the same metric of the other split: of held-out images where training
images or a classifier's labels are compared with. A metric of `labelled_features` may have `by_class(*arguments)`,
which returns an estimate for each label: a table of its own in records and on pages. Metrics that share work, such as
distances, have `together = staticmethod(f)` with one f for all of them: an evaluation calls f(metrics, *arguments)
once, which returns what each of them would.

Rows may be memory-mapped, and 50,000 x 2048 of them: a metric works in blocks (`blocks`, in float64) and copies no set
as a whole.

The laws, tested for every file here (tests/eval/test_metric_contract.py): identical sets give `Column.perfect`; the
value depends on the rows alone, never on batches, their order, or the number of processes, to the bit; a metric raises
UserError for what it cannot compare, and returns no number that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gen.config.errors import UserError
from gen.eval.estimate import Estimate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NEEDS", "Column", "Estimate", "Metric", "blocks", "check_rows", "pieces"]

BLOCK, WIDE = 4096, 2048  # rows in float64 at a time, of so many dimensions; a quarter of more

NEEDS = {  # the arguments of a call: rows of the samples, or of "reference" or "train"; "?": None if there are none
    "features": ("features", "reference.features"),
    "train_features": ("features", "train.features"),
    "split_features": ("features", "reference.features", "train.features"),
    "labelled_features": ("features", "labels", "reference.features", "reference.labels"),
    "spatial": ("spatial", "reference.spatial"),
    "predictions": ("logits",),
    "logits": ("logits", "labels"),
    "text": ("embeddings", "prompts"),
    "images": ("images", "reference.images"),
    "labelled_images": ("images", "labels?"),
    "pairs": ("images", "targets"),
    "posterior": ("images", "targets", "inputs"),
    "measured": ("images", "measured"),
}


@dataclass(frozen=True)
class Column:
    """The declaration of one number of a metric, from which every table and page is made.

    Attributes:
        key: its name in records and csv files: "fid".
        heading: the head of its column: "FID".
        higher_is_better: its direction; None for a number without one, which ranks nothing.
        perfect: the value of two identical sets, or one that they pass in its direction where a metric is unbiased.
        percent: whether it is shown times 100, with a percent sign.
        digits: significant digits that are shown where there is no standard error to go by.
        note: one sentence on what it is, for the foot of the page.
        priority: columns stand in falling order of it; the first with a direction ranks a leaderboard.
    """

    key: str
    heading: str
    higher_is_better: bool | None = False
    perfect: float = 0.0
    percent: bool = False
    digits: int = 3
    note: str = ""
    priority: int = 0

    @property
    def scale(self) -> int:
        """Factor between the number and what is shown."""
        return 100 if self.percent else 1

    def text(self, estimate: Estimate | None) -> str:
        """Return a number as it is shown: "1.19 ± 0.12"; nothing for None."""
        return "" if estimate is None else estimate.text(self.digits, self.percent)


class Metric(Protocol):
    """A frozen dataclass of a metric's options; see the module's docstring."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Declarations of the numbers that a call returns, in their order."""
        ...

    @property
    def needs(self) -> str:
        """Inputs of a call: a key of NEEDS."""
        ...

    def __call__(self, *arguments: Any) -> Estimate | Sequence[Estimate]:
        """Compute the metric.

        Args:
            arguments: rows of the samples, and of what they are compared with, as `needs` says.

        Returns:
            An estimate, or one for each of several columns.

        Raises:
            UserError: for sets that it cannot compare.
        """
        ...


def check_rows(name: str, rows: Tensor, reference: Tensor, least: int = 2) -> None:
    """Check that two sets of rows can be compared.

    Args:
        name: of the metric, for messages.
        rows: of the samples, [N, D].
        reference: [M, D].
        least: the smallest allowed N and M.

    Raises:
        UserError: if widths differ, a set is too small, or values are not finite.
    """
    if rows.ndim != 2 or reference.ndim != 2 or rows.shape[1] != reference.shape[1] or not rows.shape[1]:
        raise UserError(
            f"{name}: features {list(rows.shape)} against {list(reference.shape)}; allowed: [N, D] and [M, D]"
        )
    for what, x in (("samples", rows), ("reference", reference)):
        if len(x) < least:
            raise UserError(f"{name}: {len(x)} {what}; it needs at least {least}")
        if not all(bool(end.isfinite()) for part in x.split(BLOCK) for end in part.aminmax()):  # faster than each
            bad = sum(int((~part.isfinite()).any(1).sum()) for part in x.split(BLOCK))
            raise UserError(f"{name}: {bad} of {len(x)} {what} have features that are not finite")


def pieces(rows: Tensor, chosen: Tensor | None = None, size: int | None = None) -> Iterator[Tensor]:
    """Yield rows, a block at a time, in order.

    Args:
        rows: [N, D].
        chosen: int64 [K], the indices of those that are yielded, which are copied block by block; None for all.
        size: rows of a block; None for 4096, and a quarter of that for more than 2048 dimensions.
    """
    size = size or (BLOCK if rows.shape[1] <= WIDE else BLOCK // 4)
    if chosen is None:
        yield from rows.split(size)
    else:
        yield from (rows.index_select(0, indices) for indices in chosen.split(size))


def blocks(rows: Tensor, chosen: Tensor | None = None) -> Iterator[Tensor]:
    """Yield rows in float64, a block at a time, in order.

    Args:
        rows: [N, D].
        chosen: int64 [K], the indices of those that are yielded; None for all.
    """
    yield from (part.double() for part in pieces(rows, chosen))
