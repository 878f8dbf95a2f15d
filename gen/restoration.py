"""Restoration of measurements by a pipeline's model: one sample for each, or several that agree with it."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gen.config.errors import UserError
from gen.config.spec import build, name_of
from gen.data.lib.learned import latent_scale
from gen.diffusion.composition import compose
from gen.diffusion.denoiser import CountingDenoiser, DenoiserLike
from gen.diffusion.noise import Noise, sample_seeds
from gen.operators.lib.decoded import Decoded
from gen.samples import Samples

if TYPE_CHECKING:
    from gen.pipeline import Pipeline

__all__ = ["restore", "side_by_side"]

WHITE = 0.5  # the deviation that is drawn white, of pictures in [-1, 1]


@torch.no_grad()
def restore(
    pipeline: Pipeline,
    y: Tensor,
    operator: object,
    method: object = "pigdm",
    *,
    noise: float | None = None,
    cond: Any = None,
    guide: object = None,
    each: int = 1,
    seed: int = 0,
    batch_size: int = 250,
    autoencoder: object = None,
) -> Samples:
    """Return samples x of a model that agree with measurements y = A x + noise.

    Args:
        pipeline: the model.
        y: [n, *measured].
        operator: A, a name or a spec of gen.operators, an object with `on`, or an Operator of the model's shape.
        method: a name or a spec of gen.samplers.restore, or an object.
        noise: deviation of the measurements' noise; None for the method's own field.
        cond: as of Pipeline.sample, of each measurement; None for no class.
        guide: of the prediction that the method moves; None for none.
        each: samples of each measurement, one after another.
        seed: as of Pipeline.sample.
        batch_size: samples at a time; a method that ties rows takes all.
        autoencoder: of a model of latents: y = A decode(z), and samples are pictures; as of Pipeline.decoded, or the
            pipeline's own `decoder`. Methods that need more of A than its derivative refuse it. None for A of x itself.

    Raises:
        UserError: for measurements of another shape, and for what operator, method or model refuse.
    """
    shape = tuple(pipeline.state_shape)
    coder = None if autoencoder is None else _coder(pipeline, autoencoder)
    on = _operator(pipeline, operator, coder)
    rule = build("samplers.restore", method)
    if noise is not None:
        if not hasattr(rule, "noise"):
            name, own = name_of(type(rule)), ", ".join(field.name for field in fields(rule))
            raise UserError(f"restore: the method {name} takes no noise = {noise}: leave it out; its fields are {own}")
        rule = replace(rule, noise=noise)
    if y.ndim != 1 + len(on.measured) or tuple(y.shape[1:]) != tuple(on.measured):
        raise UserError(
            f"restore: y is {list(y.shape)}; this operator measures [n, {', '.join(map(str, on.measured))}]"
        )
    n, whole = len(y) * each, getattr(rule, "ties_rows", False)
    if whole and each > 1:
        raise UserError(f"restore: the rows of {type(rule).__name__} are one sample, so each is 1, not {each}")
    labels = pipeline.condition(n, cond, 0, each)
    if cond is None and pipeline.net.null_class:
        labels = dict(pipeline.denoiser.null(labels))
    seeds, images, evaluations, began = sample_seeds(seed, n), [], 0, time.perf_counter()
    size = n if whole else batch_size
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        part = {key: value[rows].to(pipeline.device) for key, value in labels.items()}
        known = y.repeat_interleave(each, 0)[rows].to(pipeline.device).float()
        counted, f = _guided(pipeline.denoiser, rule, guide, part, known, shape)
        x = rule.restore(f, known, on, (len(known), *shape), Noise(tuple(seeds[rows])), part)
        images.append(x.float().cpu())
        evaluations += sum(counter.rows for counter in counted)
    seconds = time.perf_counter() - began
    made = Samples(torch.cat(images), labels, evaluations / n, seconds, no_pictures=pipeline.no_pictures)
    return made if coder is None else pipeline.decoded(made, coder)


def _coder(pipeline: Pipeline, autoencoder: Any) -> Any:
    """Return what decodes a model's latents."""
    return autoencoder if hasattr(autoencoder, "decode") else pipeline.coder(autoencoder)


def _operator(pipeline: Pipeline, operator: object, coder: Any) -> Any:
    """Return the operator on a model's samples, or on their pictures."""
    given: Any = build("operators", operator)
    shape = tuple(pipeline.state_shape)
    if coder is None:
        return given if hasattr(given, "measured") else given.on(shape)
    like = torch.zeros(1, device=pipeline.device)
    if coder is pipeline.decoder:
        return Decoded(shape, getattr(coder, "decode_with_gradient", coder.decode), given, like)
    scale, shift = (part.to(like) for part in latent_scale(pipeline.info, pipeline.folder))
    return Decoded(shape, lambda z: coder.decode(z / scale + shift), given, like)


def side_by_side(
    samples: Tensor, seen: Tensor | None = None, truth: Tensor | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return rows of pictures in [-1, 1], [n, columns, C, H, W], and what the columns are.

    Args:
        samples: [n, each, C, H, W].
        seen: what they restore, [n, C, h, w], which is enlarged; None where it is no picture.
        truth: what they should be, [n, C, H, W]; None where it is not known.
    """
    each = samples.shape[1]
    columns, words = [samples], ["sample"] if each == 1 else [f"sample {k + 1}" for k in range(each)]
    if seen is not None:
        seen = interpolate(seen.to(samples), samples.shape[3:], mode="nearest")
        columns, words = [seen[:, None], *columns], ["degraded", *words]
    if each > 1:
        columns.append(samples.std(1, keepdim=True) * (2 / WHITE) - 1)
        words.append(f"deviation, {WHITE / 2:g} of the range being white")
    if truth is not None:
        columns, words = [*columns, truth[:, None]], [*words, "truth"]
    return torch.cat(columns, 1), tuple(words)


def _guided(
    denoiser: DenoiserLike, rule: Any, guide: object, cond: Any, like: Tensor, shape: tuple[int, ...]
) -> tuple[tuple[CountingDenoiser, ...], DenoiserLike]:
    """Return the counters of the networks and the prior that a method asks."""
    if guide in (None, "none"):
        counter = CountingDenoiser(denoiser)
        return (counter,), counter
    if not hasattr(rule, "grid"):
        raise UserError(f"restore: a guide needs a loop of times, which {type(rule).__name__} has not")
    times = rule.grid.times(denoiser.path, rule.steps)
    solver = getattr(rule, "solver", None) or build("samplers.solvers", "euler")  # which evaluates at the grid's times
    loop = compose(denoiser, times, solver, build("samplers.guides", guide), cond, like.new_zeros(1, *shape))
    return loop.counters, loop.f
