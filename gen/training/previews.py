"""Previews of a run while it trains: samples of the same noise, drawn, or texts after the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from gen.config.images import contact_sheet, to_uint8
from gen.config.writing import replacing, write_text
from gen.data import DataSet, DataSource
from gen.data.lib.learned import learned_data, no_pictures
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members
from gen.restoration import side_by_side
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.training.buckets import shape_of_items
from gen.training.held_out_pairs import HeldOutPairs
from gen.training.run import Run, run_spec

if TYPE_CHECKING:
    from PIL.Image import Image

    from gen.pipeline import Pipeline

__all__ = ["preview", "why_none"]

SAMPLES = 60
PROMPTS = 8
RESTORED, EACH = 12, 3  # pictures, and samples of each


def why_none(run: Run, data: DataSet, folder: Path) -> str:
    """Return the reason why a run that asks for previews gets none, and what shows its samples; "" if it gets them.

    Args:
        run: its sampler and its data decide.
        data: whose items have the shape of its samples.
        folder: of the run.
    """
    if not run.sample_every or isinstance(run.sampler, Decoding):
        return ""
    shape = tuple(data[0]["x"].shape)
    reason = "" if len(shape) == 2 else no_pictures(shape, learned_data({"run": run_spec(run)}), name=folder.name)
    hint = f"; gen sample {folder} --autoencoder FOLDER draws them, --sample_every 0 asks for none"
    return f"no previews: {reason}{hint}" if reason else ""


def preview(run: Run, net: nn.Module, data: DataSet, file: Path, device: torch.device) -> Path:
    """Write pictures of always the same noise and conditions, or texts after the prompts of always the same items.

    Args:
        run: its sampler samples.
        net: the network, unsharded and in eval mode.
        data: where prompts come from, and the shape of pictures.
        file: without the suffix, which is .png or .txt.
        device: the network's.

    Returns:
        The file that was written.
    """
    if isinstance(run.sampler, Decoding):
        _write_texts(run.sampler.on(run.path), net, run.data, data, file.with_suffix(".txt"), device)
        return file.with_suffix(".txt")
    from gen.pipeline import Pipeline

    assert run.data is not None
    shape, classes = shape_of_items(run.data, data), run.data.classes
    f = Denoiser(net, run.path, run.parameterisation)
    pipeline = Pipeline(f, shape, classes, run.sampler, device=device, info={"run": run_spec(run)})
    batch_size, zoom = run.micro_batch_size or run.batch_size, max(1, 32 // shape[-1])
    if "low" in members(net).conditions:
        sheet = _restored(pipeline, data, run.objective, batch_size, zoom)
    else:
        cond = _conditions(net, data, SAMPLES)
        sheet = pipeline.sample(SAMPLES, cond, batch_size=batch_size).sheet(columns=10, zoom=zoom)
    with replacing(file.with_suffix(".png")) as partial:
        sheet.save(partial)
    return file.with_suffix(".png")


def _restored(pipeline: Pipeline, data: DataSet, objective: object, batch_size: int, zoom: int) -> Image:
    """Return a sheet with a row for each of some pictures: degraded, samples, their deviation, truth."""
    spread: Any = Subset(cast(Any, data), [i * len(data) // RESTORED for i in range(RESTORED)])
    cond, truth = HeldOutPairs(spread, objective, EACH).rows(0, RESTORED * EACH)
    x = pipeline.sample(RESTORED * EACH, cond, batch_size=batch_size).x.unflatten(0, (RESTORED, EACH))
    rows, words = side_by_side(x, cond["low"][::EACH], truth[::EACH])
    return contact_sheet(to_uint8(rows.flatten(0, 1)), len(words), zoom)


def _conditions(net: Any, data: DataSet, n: int) -> dict[str, Tensor] | None:
    """Return the conditions besides labels of items spread over the data, [n, ...]; None where the network has none."""
    if not (names := members(net).conditions):
        return None
    items = [data[i * len(data) // n] for i in range(n)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0] if key in (*names, "y")}


def _write_texts(
    how: Decoding, net: Any, source: DataSource | None, data: DataSet, file: Path, device: torch.device
) -> None:
    """One paragraph per prompt: the prompt, what the model writes after it, and what the data have there."""
    tokenizer = getattr(source, "tokenizer", None)
    assert tokenizer is not None  # text data have one
    pipeline = TextPipeline(net, tokenizer, how, device=device)
    items = [data[i] for i in range(min(PROMPTS, len(data)))]
    prompts, lengths = zip(*(pipeline.prompt_of(item) for item in items), strict=True)
    lines = []
    texts = pipeline.generate(prompts, lengths).texts
    for item, prompt, length, text in zip(items, prompts, lengths, texts, strict=True):
        truth = pipeline.text(item["x"][len(prompt) : len(prompt) + length])
        lines.append(f"> {tokenizer.decode(prompt)}\n{text}\n({truth})\n")
    write_text(file, "\n".join(lines))
