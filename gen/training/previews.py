"""Previews of a run while it trains: samples of the same noise, drawn, or texts after the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.writing import replacing, write_text
from gen.data import DataSet, DataSource
from gen.data.lib.learned import learned_data, no_pictures
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.training.buckets import shape_of_items
from gen.training.run import Run, run_spec

__all__ = ["preview", "why_none"]

SAMPLES = 60
PROMPTS = 8


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
    cond = _conditions(net, data, SAMPLES)
    samples = pipeline.sample(SAMPLES, cond, batch_size=run.micro_batch_size or run.batch_size)
    with replacing(file.with_suffix(".png")) as partial:
        samples.sheet(columns=10, zoom=max(1, 32 // shape[-1])).save(partial)
    return file.with_suffix(".png")


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
