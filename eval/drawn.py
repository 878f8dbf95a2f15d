"""Samples of a pipeline as a set of pictures, drawn by index."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import Json, digest, spec_of
from gen.data.lib.autoencoders import autoencoder_spec
from gen.data.lib.tensors import content_hash
from gen.diffusion.denoiser import Denoiser
from gen.eval.captions import SampleCaptions
from gen.eval.extraction import code_digest
from gen.eval.image_sets import Images
from gen.eval.provenance import machine, sampler_spec, short
from gen.pipeline import Pipeline
from gen.samples import Samples
from gen.training.held_out_pairs import HeldOutPairs

__all__ = ["Decoder", "DrawnImages"]


class Decoder:
    """A pipeline whose samples are pictures: its own, or latents that an autoencoder decodes.

    Raises UserError, before anything is sampled, for a pipeline whose samples are none.

    Attributes:
        pipeline: that is sampled.
        spec: of the autoencoder; None without one.
        captions: that samples have where no condition is given; None for the condition that the pipeline chooses.
        pairs: that samples restore where no condition is given; None for a model that does not.
        shape: of one picture, (C, H, W).
        collective: whether processes compute each sample together.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        autoencoder: object,
        captions: SampleCaptions | None = None,
        pairs: HeldOutPairs | None = None,
    ):
        self.pipeline, self.captions, self.pairs = pipeline, captions, pairs
        self.coder, self.shape = None, tuple(pipeline.shape)
        self.collective = getattr(getattr(pipeline, "engine", None), "collective", False)
        autoencoder, own = autoencoder_spec(autoencoder), getattr(pipeline, "decoder", None)
        self.spec: object = None
        if own is not None or autoencoder is not None:
            self.coder = pipeline.coder(autoencoder)
            self.spec = None if autoencoder is None else short(autoencoder)
            latent = torch.zeros(1, *pipeline.shape, device=pipeline.device)
            self.shape = tuple(pipeline.decoded(Samples(latent.cpu(), {}, 0.0, 0.0), self.coder).x.shape[1:])
        elif reason := getattr(pipeline, "no_pictures", ""):
            raise UserError(reason)

    def sample(self, n: int, **how: Any) -> Samples:
        """Draw samples, as Pipeline.sample does; of pairs their cond["target"] is what they should be."""
        start = how.get("start", 0)
        if self.captions is not None:
            how = {"cond": self.captions.rows(start, n), **how}
        if self.pairs is None or "cond" in how:
            samples = self.pipeline.sample(n, **how)
        else:
            cond, truth = self.pairs.rows(start, n)
            samples = self.pipeline.sample(n, cond=cond, **how)
            samples = replace(samples, cond={**samples.cond, **({"target": truth} if self.coder is None else {})})
        return samples if self.coder is None else self.pipeline.decoded(samples, self.coder)


class DrawnImages(Images):
    """n samples of a pipeline; sample i depends on the seed and on i alone, so they are drawn in any order.

    Args:
        sampler: the pipeline.
        how: keywords of its `sample`.
        n: how many.
        seed: of the samples.
        batch_size: samples at a time.
        asked: of "targets", cond["target"], the picture that a sample should be, and "measured", cond["low"].
        known: whether the fingerprint is computed, which reads all weights.
    """

    kind, format, drawn, least = "run", "", True, 64

    def __init__(
        self,
        sampler: Decoder,
        how: Mapping[str, Any],
        n: int,
        seed: int,
        batch_size: int,
        asked: Collection[str] = (),
        known: bool = True,
    ) -> None:
        self.sampler, self._how, self._n, self._seed, self._batch_size = sampler, how, n, seed, batch_size
        self.name, self.shape = sampler.pipeline.name, sampler.shape
        labels = ("labels",) if sampler.pipeline.classes and sampler.captions is None else ()
        self.extras = ("nfe", "first", *labels, *asked)
        self.fingerprint = _fingerprint(sampler, how, seed) if known else ""

    def __len__(self) -> int:
        return self._n

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Draw samples with consecutive indices."""
        how = {**self._how, "seed": self._seed, "batch_size": self._batch_size, "start": rows[0]}
        samples = self.sampler.sample(len(rows), **how)
        found = {"images": samples.uint8(), "nfe": torch.full((len(rows),), samples.nfe, dtype=torch.float64)}
        for name, key in (("labels", "y"), ("targets", "target"), ("measured", "low")):
            if name in self.extras and key not in samples.cond:
                raise UserError(f'the samples have no {name}: cond["{key}"] is not there')
            if name in self.extras:
                value = samples.cond[key]
                found[name] = {"y": Tensor.long, "target": to_uint8, "low": Tensor.float}[key](value)
        return found


def _fingerprint(sampler: Decoder, how: Mapping[str, Any], seed: int) -> str:
    """Return a digest of all that decides the samples: weights, sampler, autoencoder, code, machine.

    "" for what has no weights and no spec by which another process could know it again.
    """
    pipeline = sampler.pipeline
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.denoiser, Denoiser):
        return ""
    own = None if pipeline.decoder is None else pipeline.decoder.identity()
    if own == {}:
        return ""
    try:
        spec = sampler_spec(pipeline, how)
        paths = [spec_of(pipeline.denoiser.path), spec_of(pipeline.denoiser.parameterisation)]
    except TypeError:
        return ""
    state = pipeline.denoiser.net.state_dict()
    parts = [part for name, value in state.items() for part in (name, value.reshape(-1).cpu())]
    known: Json = {"sampler": spec, "autoencoder": sampler.spec, "paths": paths, "seed": seed, "info": pipeline.info}
    known |= {} if own is None else {"decoder": own}
    known |= {"files": _files([spec, sampler.spec, own]), "classes": pipeline.classes, "code": code_digest()}
    known |= {"shape": list(pipeline.shape)}
    known |= {} if sampler.captions is None else {"captions": sampler.captions.info.fingerprint}
    known |= {} if sampler.pairs is None else {"pairs": sampler.pairs.fingerprint}
    known |= {"device": machine(torch.device(pipeline.device)).rpartition(",")[0], "weights": content_hash(*parts)}
    return digest(known)


def _files(spec: object) -> list[tuple[str, int, int]]:
    """Return size and time of all files that a spec names, of those in its folders too."""
    if isinstance(spec, Mapping):
        return _files(list(spec.values()))
    if isinstance(spec, (list, tuple)):
        return [found for one in spec for found in _files(one)]
    path = Path(spec) if isinstance(spec, str) and "/" in spec else None
    if path is None or not path.exists():
        return []
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
