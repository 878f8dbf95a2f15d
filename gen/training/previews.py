"""What a run shows of itself while it trains: pictures of the same noise, or texts after the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.diffusion.denoiser import Denoiser
from gen.pipeline import Pipeline
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline
from gen.training.run import Run, Sampler

__all__ = ["preview"]

GRID_SAMPLES = 60
PROMPTS = 8


def preview(run: Run, net: nn.Module, data: Any, place: Path, device: torch.device) -> None:
    """Samples at place + ".png", always of the same noise and labels, or at ".txt", after the same items' prompts."""
    if isinstance(run.sampler, Decoding):
        pipeline = TextPipeline(net, run.data.tokenizer, run.sampler, device=device)
        _write(pipeline, data, place.with_suffix(".txt"))
    else:
        _draw(run, run.sampler, net, data, place.with_suffix(".png"), device)


def _draw(run: Run, how: Sampler, net: nn.Module, data: Any, place: Path, device: torch.device) -> None:
    shape = tuple(data[0]["x"].shape)
    if shape[0] not in (1, 3):
        return
    pipeline = Pipeline(Denoiser(net, run.path, run.parameterisation), shape, run.data.classes, how, device=device)
    place.parent.mkdir(exist_ok=True)
    pipeline.sample(GRID_SAMPLES).sheet(columns=10, zoom=max(1, 32 // shape[-1])).save(place)


def _write(pipeline: TextPipeline, data: Any, place: Path) -> None:
    """One paragraph for each prompt: what it was, what is written after it, and what the data have there.

    An item without a prompt begins with the first quarter of itself.
    """
    assert pipeline.tokenizer is not None  # text data have one
    items = [data[i] for i in range(min(PROMPTS, len(data)))]
    prompts, lengths = [], []
    for item in items:
        end = int(item.get("length", len(item["x"])))
        start = int(item.get("prompt", 0)) or end // 4
        prompts.append(item["x"][:start])
        lengths.append(max(1, end - start))
    lines = []
    for item, prompt, length, text in zip(
        items, prompts, lengths, pipeline.generate(prompts, lengths).texts, strict=True
    ):
        truth = pipeline.text(item["x"][len(prompt) : len(prompt) + length])
        lines.append(f"> {pipeline.tokenizer.decode(prompt.tolist())}\n{text}\n({truth})\n")
    place.parent.mkdir(exist_ok=True)
    place.write_text("\n".join(lines), encoding="utf-8")
