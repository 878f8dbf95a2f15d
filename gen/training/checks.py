"""What a run that does not fit itself is told before any work."""

from __future__ import annotations

from typing import Any

import torch

from gen.config.errors import MissingDependency, UserError, nearest
from gen.text.decoding import Decoding
from gen.text.mask_path import MaskPath
from gen.text.tokenizers import id_fields
from gen.training.run import Run

__all__ = ["check_data", "check_sampler", "check_trackers"]


def check_data(run: Run, shape: tuple[int, ...]) -> None:
    """Raises UserError for a model that does not take the run's data, whose items have this shape."""
    spec = run.model
    if hasattr(run.data, "vocab_size"):
        _check_tokens(run, shape)
        return
    wants = getattr(spec, "shape", None) or (spec.channels, spec.size, spec.size)
    if shape != tuple(wants) or spec.classes != run.data.classes:
        raise UserError(
            f"the model takes {list(wants)} and {spec.classes} classes, the data has {list(shape)} and "
            f"{run.data.classes}: set model.channels, model.size and model.classes to fit"
        )


def _check_tokens(run: Run, shape: tuple[int, ...]) -> None:
    """Texts: the same ids on both sides, and a canvas that holds them."""
    spec, tokenizer = run.model, run.data.tokenizer
    if not hasattr(spec, "vocab_size"):
        raise UserError(f"the data is text and the model {type(spec).__name__} takes none; take the model text")
    ours, theirs = id_fields(spec), id_fields(tokenizer)
    if ours != theirs:
        asked = {key: value for key, value in theirs.items() if value != ours[key]}
        given = {key: ours[key] for key in asked}
        raise UserError(f"the data's tokeniser has {_said(asked)}, the model {_said(given)}: set "
                        "model.vocab_size, model.mask_token_id and model.eos_token_ids to fit")  # fmt: skip
    if shape[0] > spec.shape[0]:
        raise UserError(f"texts of {shape[0]} tokens; model.length = {spec.shape[0]} must be as large")


def _said(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def check_sampler(run: Run) -> None:
    """What the sampler would refuse at its first step, it refuses before the training."""
    decoded, masks = isinstance(run.sampler, Decoding), isinstance(run.path, MaskPath)
    if decoded != masks:
        allowed = "a Decoding (it has a policy)" if masks else "a Sampler (it has a solver)"
        raise UserError(f"on the path {run.path!r} the run's sampler must be {allowed}, not {type(run.sampler)}")
    if isinstance(run.sampler, Decoding):
        if run.sampler.kv_plan is not None:
            run.sampler.kv_plan.check(run.model)  # a spec knows as well as its network who sees whom
        return
    if run.parameterisation is None:
        raise UserError("param is none: only paths of masks go without a parameterisation")
    nothing, first = torch.zeros(1, 1), run.sampler.grid.times(run.path, run.sampler.steps)[0]
    run.parameterisation.solve(run.path, nothing, nothing, first)


def check_trackers(names: tuple[str, ...]) -> None:
    """accelerate drops a tracker whose package is missing; we do not."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"unknown tracker {name!r}. {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in get_available_trackers():
            raise MissingDependency(f"the tracker {name!r} needs its package: pip install {name}")
