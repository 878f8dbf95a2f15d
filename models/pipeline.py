"""The network of a pipeline of diffusers in a folder, for adapters beside it, or to be trained whole."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.models.given import GivenNet

__all__ = ["PipelineModel"]

# Pipelines of this process that models opened by themselves, which a run's model and data share. One that was given
# stays with its model: it may have prompts, which others of the folder have not.
OPEN = weakref.WeakValueDictionary[str, Any]()


@dataclass(frozen=True)
class PipelineModel:
    """The network of a pipeline of diffusers, its conditions by prompts, and its autoencoder; see gen.load_diffusers.

    Attributes:
        path: the pipeline's folder.
        call: arguments of the pipeline's call in place of the defaults, such as height, width and guidance_scale.
        dtype: of weights and computation.
        opened: a gen.PromptPipeline of that folder and call; not stored.
    """

    path: str
    call: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    opened: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "call", dict(self.call))

    @property
    def prompted(self) -> Any:
        """The gen.PromptPipeline, which is opened once in a process."""
        if self.opened is None:
            from gen.models.interop.pipelines.prompted import load_diffusers

            known = OPEN.get(self._key) or load_diffusers(self.path, dtype=self.dtype, **self.call)
            object.__setattr__(self, "opened", known)
            OPEN[self._key] = known
        return self.opened

    @property
    def _key(self) -> str:
        return json.dumps([self.path, self.call, self.dtype], sort_keys=True)

    @property
    def module(self) -> nn.Module:
        """The network, under the contract of gen.diffusion.net.Net."""
        net: nn.Module = self.prompted.pipeline.denoiser.net
        return net

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.prompted.pipeline.shape)

    @property
    def classes(self) -> int:
        return 0

    @property
    def decoder(self) -> Any:
        """From latents to pictures and back, as the pipeline does."""
        return self.prompted.pipeline.decoder

    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """Return the conditions of prompts, tensors [n, ...], as the pipeline makes them.

        Args:
            prompts: in words.
        """
        cond: Cond = self.prompted.encode(prompts)
        return cond

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Return the latents [n, ...] of pictures, as the pipeline begins with them when it edits.

        Args:
            pictures: [n, 1 or 3, H, W] in [-1, 1], of the size of the pipeline's samples.

        Raises:
            UserError: for another size.
        """
        latents: Tensor = self.decoder.encode(pictures.expand(-1, 3, -1, -1)).cpu()
        return latents

    def to(self, device: torch.device | str) -> None:
        """Move the pipeline.

        Args:
            device: where its parts compute from now on.
        """
        prompted = self.prompted
        if torch.device(device) != prompted.pipe.device:
            prompted.pipe.to(device)
            for name, member in vars(type(prompted)).items():  # what it knows of the device before
                if isinstance(member, cached_property):
                    vars(prompted).pop(name, None)

    def pipeline_fields(self, sampler: Any, device: torch.device | str) -> dict[str, Any]:
        """Return what the gen.Pipeline of a network trained beside this one takes from the pipeline.

        Times that are the pipeline's own for the sampler's steps are so for any others.

        Args:
            sampler: of the run.
            device: that the pipeline is moved to.
        """
        self.to(device)
        own = self.prompted.pipeline
        times = own.sampler.grid.times(own.denoiser.path, sampler.steps).tolist()
        same = list(getattr(sampler.grid, "values", ())) == times
        sampler = replace(sampler, grid=own.sampler.grid) if same else sampler
        return {"sampler": sampler, "encode_prompts": self.encode_prompts, "decoder": own.decoder}

    def found(self, model: object, source: object) -> PipelineModel:
        """Return the same; UserError for a network that is given beside the folder.

        Args:
            model: as of gen.load.
            source: the folder that this is from.
        """
        if model is not None:
            raise UserError(f"model: the network of {source} is in the pipeline {self.path}: leave it out")
        self.prompted.pipeline  # noqa: B018 - opened and heard here: networks are built without numbers
        return self

    def build(self) -> nn.Module:
        """Return a copy of the network."""
        return self._given.build()

    def frozen(self) -> nn.Module:
        """Return a copy of the network that shares its weights, none of which is trained."""
        return self._given.frozen()

    def check(self, net: Any, x: Tensor, cond: Cond) -> None:
        """Raise UserError, in one line, for a network that does not take one item of the data.

        Args:
            net: what `build` returned.
            x: [1, ...].
            cond: tensors [1, ...].
        """
        self._given.check(net, x, cond)

    @property
    def _given(self) -> GivenNet:
        return GivenNet(self.module, shape=self.shape)
