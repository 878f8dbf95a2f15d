"""Checks of a run against its data, sampler and machine, before any work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gen.config import checkpoints
from gen.config.errors import MissingDependency, NonFinite, UserError, nearest
from gen.data import DataSet, DataSource
from gen.diffusion.net import shape_of, takes_shape
from gen.text.decoding import Decoding
from gen.text.mask_path import MaskPath
from gen.text.tokenizers import id_fields
from gen.training.objectives import Objective
from gen.training.run import Run
from gen.training.stream import ShuffledStream

__all__ = [
    "check_data", "check_network", "check_objective", "check_rate", "check_sampler", "check_trackers",
    "check_validation", "nonfinite_step",
]  # fmt: skip


def check_data(spec: Any, data: DataSource, shape: tuple[int, ...]) -> None:
    """Check that a model takes a run's data.

    Args:
        spec: of the network (gen.diffusion.net.NetSpec).
        data: the source.
        shape: of one item's x.

    Raises:
        UserError: for another shape, number of classes or vocabulary.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None:
        _check_tokens(spec, tokenizer, shape)
        _check_blocks(getattr(spec, "block_size", None), getattr(data, "packing", None), getattr(data, "infill", None))
        return
    wants = shape_of(spec) or ()
    if len(shape) == len(wants) == 3 and shape[1] != shape[2] and wants[1] == wants[2]:
        raise UserError(
            f"the data's x is {list(shape)}, and this {type(spec).__name__} takes {list(wants)}: dit, reg and unet may "
            "be higher or wider than square (model.size), all others need square data"
        )
    if (sizes := _bucket_sizes(data)) and not hasattr(spec, "check"):
        _check_buckets(spec, shape[0], sizes)
    if shape != wants or spec.classes != data.classes:
        sides = {2: "model.length", 4: "model.frames, model.size"}.get(len(wants), "model.size")
        fit = (
            f"set model.channels, {sides} and model.classes to fit"
            if len(shape) == len(wants)
            else "take another model"
        )
        raise UserError(
            f"the model takes {list(wants)} and {spec.classes} classes, the data has {list(shape)} and {data.classes}: "
            + fit
        )
    ours, theirs = getattr(spec, "vector_width", 0), getattr(data, "vector_width", 0)
    if ours and ours != theirs:
        raise UserError(f"the model reads vectors of {ours} numbers, the data's have {theirs}: set model.vector_width")
    _check_captions(spec, getattr(data, "text_fields", {}))


def _check_captions(spec: Any, wanted: Mapping[str, Any]) -> None:
    """Check that a network reads the captions of the data: their ids, or embeddings of their width and length."""
    spec = getattr(spec, "inner", spec)
    if wanted and not hasattr(spec, "text_length") and not hasattr(spec, "check"):
        raise UserError(f"the data have captions, and this {type(spec).__name__} reads none: take pixart or mmdit")
    fixed = {key: value for key, value in wanted.items() if key not in ("text_depth", "null_text")}
    given = {key: getattr(spec, key) for key in fixed if hasattr(spec, key)}
    short = given.get("text_length", 0) < fixed.get("text_length", 0)
    if any(given[key] != fixed[key] for key in given if key != "text_length") or (given and short):
        raise UserError(f"the data's captions have {_listed(fixed)}, the model {_listed(given)}: set model.text_vocab, "
                        "model.text_width and model.text_length to fit")  # fmt: skip


def _bucket_sizes(data: Any) -> tuple[tuple[int, int], ...]:
    """Return height and width of every bucket of a source; () without buckets."""
    return tuple(data.bucket_sizes) if getattr(data, "buckets", None) is not None else ()


def _check_buckets(spec: Any, channels: int, sizes: Iterable[tuple[int, int]]) -> None:
    """Check that a network takes pictures of all sizes."""
    if (refused := next((size for size in sizes if not takes_shape(spec, (channels, *size))), None)) is None:
        return
    step, name = getattr(spec, "size_step", None), type(spec).__name__
    raise UserError(
        f"the data have a bucket of {refused[0]}x{refused[1]} pixels, and this {name} takes "
        + (f"sides that are multiples of {step}: so must data.buckets be" if step else
           f"{list(shape_of(spec) or ())} alone: take dit, unet, song_unet or edm2, or leave out data.buckets")
    )  # fmt: skip


def _check_tokens(spec: Any, tokenizer: Any, shape: tuple[int, ...]) -> None:
    """Check that model and tokeniser have the same ids, and that the model is long enough for the texts."""
    if not hasattr(spec, "vocab_size"):
        raise UserError(f"the data is text and the model {type(spec).__name__} takes none; take the model text")
    ours, theirs = id_fields(spec), id_fields(tokenizer)
    if ours != theirs:
        wanted = {key: value for key, value in theirs.items() if value != ours[key]}
        given = {key: ours[key] for key in wanted}
        raise UserError(f"the data's tokeniser has {_listed(wanted)}, the model {_listed(given)}: set "
                        "model.vocab_size, model.mask_token_id and model.eos_token_ids to fit")  # fmt: skip
    if shape[0] > spec.shape[0]:
        raise UserError(f"texts of {shape[0]} tokens; model.length = {spec.shape[0]} must be as large")


def _check_blocks(block_size: int | None, packing: int | None, infill: Any) -> None:
    """Check that packed texts begin with a block, and that what follows a gap is seen."""
    if block_size is not None and packing is not None and packing % block_size:
        raise UserError(f"data.packing = {packing}: texts of one window begin with a block of the model, so it must be "
                        f"a multiple of model.block_size = {block_size}")  # fmt: skip
    if block_size is not None and infill is not None:
        raise UserError(f"data.infill: a model of blocks (model.block_size = {block_size}) sees nothing of the text "
                        "behind a gap: set model.block_size to none")  # fmt: skip


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def check_network(spec: Any, net: nn.Module, data: DataSet) -> None:
    """Let a network that was given as an object (gen.models.given) compute an item of each size that the data have.

    Args:
        spec: of the network; that of any other has no `check`.
        net: built.
        data: opened.

    Raises:
        UserError: if it fails, or returns another shape.
    """
    if not hasattr(spec, "check"):
        return
    buckets = getattr(data, "buckets", None)
    for i in [0] if buckets is None else np.unique(buckets, return_index=True)[1].tolist():
        one = {key: value[None] for key, value in data[i].items()}
        spec.check(net, one.pop("x"), {key: value for key, value in one.items() if key != "origin"})


def check_objective(run: Run, data: DataSet) -> None:
    """Check that an objective takes pictures of several sizes, if the data have them.

    Args:
        run: its objective.
        data: opened.

    Raises:
        UserError: for one whose encoder takes pictures of one size, or that validates by all held-out ones at once.
    """
    if getattr(data, "buckets", None) is None:
        return
    kind: Any = type(run.objective)
    together = Objective in kind.__mro__ and kind.validate_all is not Objective.validate_all
    if hasattr(run.objective, "encoder"):
        raise UserError(f"the encoder of {kind.__name__} has tokens on one grid, and the data have pictures of several "
                        "sizes: leave out data.buckets, or take the objective denoise")  # fmt: skip
    if together and run.validate_every:
        raise UserError(f"{kind.__name__} validates by all held-out pictures at once, and the data have several sizes: "
                        "leave out data.buckets, or validate_every 0")  # fmt: skip


def check_sampler(run: Run) -> None:
    """Check that the run's sampler fits its path, parameterisation and model.

    Args:
        run: the run.

    Raises:
        UserError: for what sampling would refuse at its first step.
    """
    decoded, masks = isinstance(run.sampler, Decoding), isinstance(run.path, MaskPath)
    if decoded != masks:
        allowed = "a Decoding (it has a policy)" if masks else "a Sampler (it has a solver)"
        raise UserError(f"on the path {run.path!r} the run's sampler must be {allowed}, not {type(run.sampler)}")
    if isinstance(run.sampler, Decoding):
        if run.sampler.kv_plan is not None:
            run.sampler.kv_plan.check(run.model)  # the spec knows the attention rule, too
        return
    if run.parameterisation is None:
        raise UserError("parameterisation is none: only paths of masks go without a parameterisation")
    zeros, first = torch.zeros(1, 1), run.sampler.grid.times(run.path, run.sampler.steps)[0]
    run.parameterisation.solve(run.path, zeros, zeros, first)


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that trackers exist and are installed; accelerate would drop them silently.

    Args:
        names: accelerate's names.

    Raises:
        UserError: for an unknown name; MissingDependency for a package that is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {tracker.value for tracker in get_available_trackers()}  # members of an Enum that is no str
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"unknown tracker {name!r}. {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise MissingDependency(f"the tracker {name!r} needs its package: pip install {name}")


def check_rate(run: Run, before: Run, step: int) -> None:
    """Warn where a run goes on for another number of steps at more than twice its last learning rate.

    Args:
        run: as it goes on.
        before: as it was.
        step: updates done.
    """
    if run.steps == before.steps or not 0 < step < run.steps:
        return
    last, rate = before.learning_rate(step - 1), run.learning_rate(step)
    if rate > 2 * last:
        kind = type(run.schedule).__name__
        warnings.warn(
            f"step {step}: the learning rate rises from {last:.3g} to {rate:.3g}, since {kind} of {before.steps} steps "
            f"goes on as {kind} of {run.steps}",
            stacklevel=2,
        )


def nonfinite_step(run: Run, data: DataSet, step: int, what: str, folder: Path) -> NonFinite:
    """Return the error of a step that was not finite, with its cause if that is the data, or else advice.

    Args:
        run, data: that are trained.
        step: whose batch is looked at.
        what: the numbers.
        folder: of the run's checkpoints. One of this very step has the weights of which the loss is not finite, so the
            one before is named too.
    """
    stream = ShuffledStream(data, run.seed, run.batch_size)
    stored = _nonfinite_item(data, map(stream.row, range(run.samples_before(step), run.samples_before(step + 1))))
    last = checkpoints.newest(folder)
    saved = f"The newest checkpoint is {last}" if last else "No checkpoint was saved"
    if last is not None and last.name == checkpoints.checkpoint_name(step):
        before = [path for path in checkpoints.lineage(folder) if path != last]
        saved += f", with these very weights, the one before {before[-1] if before else 'none'}"
    advice = stored or (
        "The same settings end there again: try a lower lr, a smaller clip, or precision no"
        + (", in another folder, with --init CHECKPOINT" if last else "")
    )
    return NonFinite(f"step {step}: {what}; nothing was updated. {saved}. {advice}")


def check_validation(loss: float, data: DataSet, step: int) -> float:
    """Return a validation loss; NonFinite if it is none, with the item that is to blame.

    Args:
        loss: as computed.
        data: held out.
        step: updates done.
    """
    if not math.isfinite(loss):
        advice = _nonfinite_item(data, range(len(data))) or "The data are finite: try a lower lr"
        raise NonFinite(f"step {step}: the validation loss is {loss:g}. {advice}")
    return loss


def _nonfinite_item(data: DataSet, rows: Iterable[int]) -> str | None:
    """Return which stored item holds NaN or infinity, in words; None if none does.

    Args:
        data: a data set; its optional `where(i)` names the file and row of item i.
        rows: the items to look at.
    """
    for i in rows:
        for key, value in data[i].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                where = getattr(data, "where", None)
                place = f"item {i} of the data" if where is None else where(i)
                return f"The data are not finite: {key} of {place} holds NaN or infinity; mend it, or leave it out"
    return None
