"""A pipeline of diffusers on several processes, each with part of the tokens: diffusers' own context parallelism."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from gen.config.errors import UserError
from gen.models.interop.pipelines.families import plain_module

__all__ = ["divide_tokens"]


def divide_tokens(pipe: Any, ulysses: int = 1, ring: int = 1) -> None:
    """Let each process of torch.distributed's default group compute a part of a pipeline's tokens, in place, for good.

    It is diffusers' `enable_parallelism` on the transformers of the pipeline (Wan 2.2 has two), for the classes that
    diffusers has a plan for: FLUX, FLUX.2, Qwen-Image, Wan, LTX and a few more. Every process calls the pipeline, or
    its denoiser (gen.load_diffusers), with the same arguments at the same moment, and gets the whole result. Blocks'
    sites of taps see this process's tokens, so a cache must decide by steps.

    Args:
        pipe: with transformers.
        ulysses: processes that exchange heads.
        ring: processes, or groups of such, that pass keys and values around; where ulysses is above 1 too, tokens and
            heads must divide.

    Raises:
        UserError: for other networks, for another number of processes than ulysses x ring, and without accelerators,
            which diffusers counts to give each process its own.
    """
    named = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    modules = [plain_module(module) for module in named if module is not None]
    if not modules:
        raise UserError(f"divide_tokens divides transformers, and a {type(pipe).__name__} has none")
    if without := [type(module).__name__ for module in modules if getattr(module, "_cp_plan", None) is None]:
        raise UserError(f"divide_tokens: diffusers has no plan to divide a {without[0]}")
    count = dist.get_world_size() if dist.is_initialized() else 1
    if not 1 < ulysses * ring == count:
        raise UserError(f"divide_tokens: ulysses x ring = {ulysses} x {ring} on {count} process{'es' * (count > 1)}; "
                        "start as many, more than one, with torchrun and init_process_group")  # fmt: skip
    if not torch.accelerator.device_count():
        raise UserError("divide_tokens: diffusers gives each process an accelerator of its own, and there is none; "
                        "on CPUs there is the engine 'branches'")  # fmt: skip
    import diffusers

    make: Any = diffusers.ContextParallelConfig
    uneven = {"ulysses_anything": ring == 1, "ring_anything": ulysses == 1}  # tokens and heads that do not divide
    config = make(ulysses_degree=ulysses, ring_degree=ring, **uneven)
    for module in modules:
        try:
            module.enable_parallelism(config=config)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"divide_tokens: diffusers cannot divide this {type(module).__name__} ({error})") from error
