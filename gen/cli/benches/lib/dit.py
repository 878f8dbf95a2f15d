"""DiTs for the parts that time whole networks: ours, and diffusers' class with the same weights.

The weights are random and keep the size of what passes through them, so that every part of the network counts in its
output; those of a fresh network would leave its blocks out, and a mistake in them would show nowhere.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.cli.benches.lib.peers import of_diffusers
from gen.config.spec import build, find, names
from gen.diffusion.net import sides
from gen.eval.bench import BenchContext, Function, Unavailable
from gen.models.dit import DiT, DiTNet
from gen.models.interop.diffusers_export import _config
from gen.models.interop.diffusers_names import to_diffusers

__all__ = ["QUANTISED", "Nets", "compiled", "forward_flops", "specification", "under_cudnn"]

QUANTISED = ("int8", "int8_weights", "float8")
TINY = {"size": 8, "width": 32, "depth": 2, "heads": 2}


def specification(size: str, context: BenchContext) -> DiT:
    """Return a DiT as diffusers' class can be it, with the learned variances of the published weights.

    Args:
        size: "S/2" ...
        context: `quick` for a tiny one.
    """
    spec = DiT.preset(size, freq_shift=1, mlp_norm_eps=1e-5, learn_sigma=True)
    return DiT(**{**vars(spec), **TINY}) if context.quick else spec


def forward_flops(spec: DiT) -> float:
    """Count operations for one image, two for each multiplication of a matrix product; embedders of t and y once.

    Args:
        spec: of the network.
    """
    tokens, d = math.prod(side // spec.patch for side in sides(spec)), spec.width
    patch = spec.patch**2 * spec.channels
    block = tokens * (4 + 2 * spec.mlp_ratio) * d * d + 2 * tokens**2 * d + 6 * d * d
    ends = tokens * d * patch * (1 + 1 + spec.learn_sigma) + 2 * d * d + 256 * d + d * d
    return 2 * (spec.depth * block + ends)


class Nets:
    """One network in all its forms, each made when it is first asked for."""

    def __init__(self, spec: DiT, context: BenchContext):
        self.spec, self.context = spec, context

    @cached_property
    def net(self) -> DiTNet:
        """Ours, in float32."""
        with torch.random.fork_rng(), self.context.device:
            torch.manual_seed(0)
            net = self.spec.build().eval()
            for p in net.parameters():
                if p.requires_grad:
                    nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
        return net

    @cached_property
    def plain(self) -> DiTNet:
        """Ours in the dtype that is asked for, as it is."""
        return copy.deepcopy(self.net).to(self.context.dtype)

    def double(self) -> DiTNet:
        """A copy in float64."""
        return copy.deepcopy(self.net).double()

    def engine(self, name: str, reason: str = "") -> nn.Module:
        """Ours, made ready by an engine of gen.models.engines; UserError where that refuses.

        Unavailable for "compiled" where nothing is, or for the reason that is given.
        """
        if name == "compiled" and (reason or self.context.compile_obstacle()):
            raise Unavailable(reason or str(self.context.compile_obstacle()))
        given = {"name": name, "dtype": str(self.context.dtype).removeprefix("torch."), "compared": 0}
        has = {f.name for f in dataclasses.fields(find(name, "models.engines"))}  # not every engine has all
        engine = build("models.engines", {k: v for k, v in given.items() if k in {"name", *has}})
        return engine.prepare(self.net, self.context.device)

    def engines(self) -> list[str]:
        """The engines of one process that round to the dtype alone; "auto" is one of the others."""
        return [name for name in names("models.engines") if name not in ("auto", "sequence", *QUANTISED)]

    @cached_property
    def theirs(self) -> Any:
        """diffusers' DiTTransformer2DModel in the dtype that is asked for."""
        return self.diffusers(self.context.dtype)

    def diffusers(self, dtype: torch.dtype) -> Any:
        """A new DiTTransformer2DModel with these weights; Unavailable without diffusers."""
        with torch.device("meta"):
            model = of_diffusers("DiTTransformer2DModel").from_config(_config(self.spec, self.spec.classes))
        table = model.pos_embed.pos_embed  # is computed, not loaded
        model.pos_embed.pos_embed = self.net.pos_embed.detach().to(table.dtype).clone()
        state = to_diffusers(dict(self.net.state_dict()), self.spec.depth)
        own = {name: torch.empty_like(value, dtype=dtype).copy_(value) for name, value in state.items()}
        model.load_state_dict(own, assign=True)
        return model.eval().requires_grad_(False)

    def draw(self, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, H, W] in the dtype, timesteps float32 [B] and labels [B]."""
        normal, (c, size) = self.context.normal_source(seed), (self.spec.channels, self.spec.size)
        generator = torch.Generator(self.context.device).manual_seed(seed)
        t = torch.rand(rows, generator=generator, device=self.context.device) * 999
        y = torch.randint(self.spec.classes, (rows,), generator=generator, device=self.context.device)
        return normal(rows, c, size, size), t, y

    def weight_bytes(self) -> float:
        """Of the network as the paper has it, in the dtype that is asked for."""
        with torch.device("meta"):
            net = self.spec.build()
        return sum(p.numel() for p in net.parameters()) * torch.finfo(self.context.dtype).bits / 8


def under_cudnn(model: Function, context: BenchContext) -> Function:
    """Return the same call with cuDNN's attention in place of PyTorch's choice.

    Args:
        model: network or pipeline.
        context: of the benchmark.

    Raises:
        Unavailable: without CUDA.
    """
    if not context.cuda:
        raise Unavailable(f"cuDNN's attention is for CUDA, and this is {context.device.type}")

    def call(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return model(*args, **kwargs)

    return call


def compiled(model: Function, context: BenchContext, reason: str = "") -> Any:
    """Compile a model as torch.compile does best: CUDA graphs on a GPU, frozen weights on a CPU.

    Args:
        model: network.
        context: of the benchmark.
        reason: why it is not compiled here; "" if it is.

    Raises:
        Unavailable: for the reason, or where nothing can be compiled.
    """
    if reason:
        raise Unavailable(reason)
    return context.compiled(model, **({"mode": "reduce-overhead"} if context.cuda else {"options": {"freezing": True}}))
