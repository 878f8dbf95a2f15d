"""The run that trains adapters beside the network of a pipeline: what `gen train` and `gen distill` start from."""

from __future__ import annotations

from typing import Any

from gen.config.errors import UserError, shown
from gen.config.spec import digest
from gen.models.interop.pipelines.families import networks_of
from gen.models.interop.pipelines.listening import NULL
from gen.models.pipeline import PipelineModel
from gen.training.lora import LoRA
from gen.training.objectives.denoise import Denoising
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler

__all__ = ["training_run"]


def training_run(loaded: Any) -> Run:
    """Return the run that fine-tunes the network of a pipeline by adapters of rank 16, without data.

    Args:
        loaded: a gen.PromptPipeline.

    Raises:
        UserError: for a pipeline that is no folder, and for one that takes no prompts.
    """
    if loaded.folder is None:
        raise UserError(f"{loaded.name} was given as an object, and what is trained is found again by its folder: "
                        "pipe.save_pretrained(folder), gen.load_diffusers(folder)")  # fmt: skip
    if loaded.engine is not None:
        raise UserError(f"{loaded.name} was prepared by an engine, and is trained without: leave out prepared(...)")
    if not loaded.takes_prompts:
        raise UserError(
            f"{loaded.name} was loaded with embeddings or labels, and is trained on captions: leave them out"
        )
    try:
        digest(dict(loaded.call))
    except TypeError:
        raise UserError(f"call = {shown(dict(loaded.call))}; to be trained, arguments of texts and numbers") from None
    pipeline, own = loaded.pipeline, loaded.own
    weights = next(next(iter(networks_of(loaded.pipe).values())).parameters())
    dtype = str(weights.dtype).removeprefix("torch.")
    times = pipeline.sampler.grid.times(pipeline.denoiser.path, own.steps)
    guided = any(key.startswith(NULL) for key in loaded.heard.cond)
    return Run(
        model=PipelineModel(str(loaded.folder), dict(loaded.call), dtype, loaded),
        objective=Denoising() if guided else Denoising(class_dropout=0.0),
        path=pipeline.denoiser.path,
        parameterisation=pipeline.denoiser.parameterisation,
        optim=AdamW(lr=1e-4),
        sampler=Sampler(own.solver, own.steps, times.tolist(), own.guide),
        lora=LoRA(),
        steps=1000,
        batch_size=16,
        sample_every=0,
        validate_every=0,
    )
