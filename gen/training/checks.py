"""Checks of a run against its data, sampler and machine, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gen.config.errors import MissingDependency, UserError, nearest
from gen.data import DataSource
from gen.text.decoding import Decoding
from gen.text.mask_path import MaskPath
from gen.text.tokenizers import id_fields
from gen.training.run import Run

__all__ = ["check_data", "check_sampler", "check_trackers"]


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
        return
    wants = getattr(spec, "shape", None) or (spec.channels, spec.size, spec.size)
    if shape != tuple(wants) or spec.classes != data.classes:
        raise UserError(
            f"the model takes {list(wants)} and {spec.classes} classes, the data has {list(shape)} and "
            f"{data.classes}: set model.channels, model.size and model.classes to fit"
        )


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


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


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
