"""Pipelines of diffusers as their users know them: `gen.load_diffusers("sd15").sample("a red fox").images`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gen.config.devices import check_device
from gen.config.errors import UserError, shown
from gen.config.fields import check_arguments
from gen.config.reading import file_sha256
from gen.config.spec import Json, build, digest
from gen.diffusion.contracts import Cache, Guide, Solver
from gen.diffusion.denoiser import Cond
from gen.models.interop.pipelines.call_checks import (
    check_call,
    check_no_cache,
    check_size,
    in_one_line,
    parameters_of,
)
from gen.models.interop.pipelines.conditions import PromptConditions, joined
from gen.models.interop.pipelines.families import Family, family_given, networks_of
from gen.models.interop.pipelines.given import dtype_of, opened, picture_files, pictures_of, same_draws, texts_of
from gen.models.interop.pipelines.hooks import SiteHooks
from gen.models.interop.pipelines.latents import (
    Rule,
    autoencoder_rule,
    decode_by_rule,
    decode_latents,
    encode_images,
    mask_latents,
)
from gen.models.interop.pipelines.listening import NULL, Heard, encode, listen
from gen.models.interop.pipelines.network import PipelineNet, denoiser_of
from gen.models.interop.pipelines.opening import open_pipeline
from gen.models.interop.pipelines.own_grid import OwnGrid
from gen.models.interop.pipelines.own_sampling import OwnSampling, own_sampling
from gen.models.interop.pipelines.schedule import begins_later
from gen.models.interop.pipelines.taps import check_sites
from gen.pipeline import Pipeline
from gen.samples import Samples
from gen.text.pipeline import engine_of
from gen.training.run import Run, Sampler

__all__ = ["PromptPipeline", "load_diffusers"]


@dataclass(frozen=True, eq=False)
class OwnDecoder:
    """From latents to pictures in [-1, 1], as the pipeline itself ends.

    Attributes:
        heard: a call of the pipeline for the size of the pictures.
        about: what decides the pictures beside the latents; {} where nothing can say so.
    """

    heard: Heard
    about: Json

    def identity(self) -> Json:
        """Return `about`, which a fingerprint of samples takes in."""
        return self.about

    def decode(self, z: Tensor) -> Tensor:
        """Return the pictures [B, 3, H, W] or films [B, 3, T, H, W] of latents [B, ...], float32."""
        x = decode_latents(self.heard, z.to(self.heard.latents.dtype)).float()
        return x if x.ndim == 4 else x.transpose(1, 2)

    @cached_property
    def rule(self) -> Rule:
        """How the autoencoder's input comes from latents."""
        return autoencoder_rule(self.heard)

    def decode_with_gradient(self, z: Tensor) -> Tensor:
        """Return as `decode` pictures or films that are not clamped, by the autoencoder alone."""
        return decode_by_rule(self.heard, self.rule, z)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of pictures or films, as `decode` returns them."""
        return encode_images(self.heard, x if x.ndim == 4 else x.transpose(1, 2)).float()

    def mask(self, x: Tensor) -> Tensor:
        """Return the mask of latents of one of pictures, [n, 1, H, W]: the mean over a position's pixels."""
        return mask_latents(self.heard, x).cpu()


@dataclass(frozen=True, eq=False)
class PromptPipeline:
    """A pipeline of diffusers that samples by prompts, with solvers, guides and caches of gen.

    Attributes:
        pipe: of diffusers; it is called up to its first step to encode prompts, and from its last one on to decode.
        call: arguments of its call in place of the defaults: height, width, num_frames, guidance_scale, ...; in place
            of prompts their embeddings, or class_labels.
        folder: that it was loaded from; None for one that was given as an object.
        store: folder that conditions of prompts are kept in; None for memory alone.
        prompts: those of samples for which none are given, in turn; () where they have to be.
        family: of a network that the table of families has not; None for the table's own.
        engine: that its networks are computed by, see `prepared`; None for none.
    """

    pipe: Any
    call: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    store: Path | None = None
    prompts: tuple[str, ...] = ()
    family: Family | None = None
    engine: Any = None

    def __repr__(self) -> str:
        own, net = self.own, self.pipeline
        of = "" if self.folder is None else f"{self.name}: "
        steps = f"{own.steps} step{'s' if own.steps > 1 else ''}"
        kind = type(self.pipe.scheduler).__name__
        options = ", ".join(name for name in own.differs if name != "rule")
        nearest = f"nearest to its {kind}" + (f", but for its {options}" if options else "")
        solver = f"{own.solver['name']} ({nearest if own.differs else f'as {kind}'})"
        guide = "no guide" if own.guide is None else f"{own.guide['name']} {own.guide['scale']:g}"
        shape = " x ".join(map(str, net.shape))
        return (
            f"PromptPipeline({of}{type(self.pipe).__name__}, {net.params:,} parameters, latents {shape}, "
            f"{solver}, {steps}, {guide}, {str(self.heard.dtype).removeprefix('torch.')} on {net.device})"
        )

    @property
    def name(self) -> str:
        """The folder's name, or the class's."""
        return type(self.pipe).__name__ if self.folder is None else self.folder.resolve().name

    @property
    def takes_prompts(self) -> bool:
        """Whether samples are asked for by prompts: not where the call has embeddings or labels."""
        return "prompt" in parameters_of(self.pipe) and not any(key in self.call for key in ROWS)

    @property
    def takes_labels(self) -> bool:
        """Whether samples are asked for by labels: not where the call has them."""
        return LABELS in parameters_of(self.pipe) and LABELS not in self.call

    @cached_property
    def heard(self) -> Heard:
        """The pipeline's call for this size, up to its first step."""
        check_call(self.pipe, self.call)
        check_size(self.pipe, self.call, self.family)
        prompt: dict[str, Any] = {"prompt": [""], **self._negative(1)} if self.takes_prompts else {}
        prompt |= {LABELS: [0]} if self.takes_labels else {}
        if "negative_prompt_embeds" in self.call:
            prompt = {"negative_prompt": None}  # of which some have a default
        call = {**self.call, **prompt, **opened(self.call)}
        with same_draws(self.pipe):
            heard = in_one_line(self.pipe, lambda: listen(self.pipe, family=self.family, **call))
        kind = type(self.pipe).__name__
        if "Img2Img" in kind or begins_later(heard):
            raise UserError(f"{kind} begins with an image, not with noise: load the pipeline of the same parts that "
                            "begins with noise, and give image and strength to sample")  # fmt: skip
        return heard

    @cached_property
    def own(self) -> OwnSampling:
        """The pipeline's own way to sample."""
        return self.own_of(None)

    def own_of(self, steps: int | None) -> OwnSampling:
        """Return the pipeline's own way to sample in so many steps.

        Args:
            steps: of the loop; None for those of its call.
        """
        call = dict(self.call) if steps is None else {**self.call, "num_inference_steps": steps}
        return own_sampling(self.pipe, call, any(key.startswith(NULL) for key in self.heard.cond))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The same as a gen.Pipeline of latents, whose conditions are prompts or labels: for all that takes one."""
        heard, own = self.heard, self.own
        denoiser = denoiser_of(heard)
        grid = OwnGrid(type(self.pipe.scheduler).__name__, heard)
        about = self._about()
        kept: Json = {"store": self.store, "prompts": self.prompts, "about": about}
        conditions = PromptConditions(self._encoded, **kept) if self.takes_prompts else None
        pipeline = Pipeline(
            denoiser,
            tuple(heard.latents.shape[1:]),
            cast(PipelineNet, denoiser.net).spec.classes if self.takes_labels else 0,
            sampler=Sampler(own.solver, own.steps, grid, own.guide),
            name=self.name,
            params=sum(p.numel() for p in denoiser.net.parameters()),
            device=heard.latents.device,
            folder=self.folder,
            encode_prompts=conditions,
            decoder=OwnDecoder(heard, about),
        )
        return pipeline if self.engine is None else pipeline.prepared(self.engine)

    def prepared(self, engine: object = "packed") -> PromptPipeline:
        """Return the pipeline under an engine, which computes modules of its networks faster while they are sampled.

        Args:
            engine: `packed` or `fused`, which gen.accelerate describes, `branches` or `patches`; a name, a spec or an
                object.
        """
        return replace(self, engine=engine_of(engine))

    def training_run(self) -> Run:
        """Return the run that fine-tunes the network by adapters, see gen.models.interop.pipelines.teaching."""
        from gen.models.interop.pipelines.teaching import training_run

        return training_run(self)

    def resized(
        self, height: int | None = None, width: int | None = None, num_frames: int | None = None
    ) -> PromptPipeline:
        """Return the pipeline for pictures or films of another size.

        Args:
            height, width: pixels; None as they are.
            num_frames: pictures of a film; None as they are.
        """
        given = {"height": height, "width": width, "num_frames": num_frames}
        return self.with_call(**{key: value for key, value in given.items() if value is not None})

    def with_call(self, **call: Any) -> PromptPipeline:
        """Return the pipeline with other arguments of its call.

        Args:
            **call: arguments of pipe(...).
        """
        return replace(self, call={**self.call, **call}) if call else self

    @check_arguments(images_per_prompt="[1, inf)", batch_size="[1, inf)")
    def sample(
        self,
        prompt: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        images_per_prompt: int = 1,
        *,
        labels: Sequence[int] | int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        solver: Solver | Json | str | None = None,
        steps: int | None = None,
        grid: Any = None,
        guide: Guide | Json | str | None = None,
        cache: Cache | Json | str | None = None,
        engine: object = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        decode: bool = True,
        noise: Tensor | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        trajectory: bool = False,
        callback: Callable[[int, float, Tensor], Tensor | None] | None = None,
        progress: bool = False,
    ) -> Samples:
        """Return samples of prompts. Sample i depends on its prompt, its seed and its index, never on batch_size.

        Args:
            prompt: one, or a list; None for the pipeline's `prompts`, and where the call has embeddings or labels.
            negative: what the guide moves away from, one prompt for all or a list; None as the pipeline takes it.
            images_per_prompt: consecutive samples of each prompt or label.
            labels: in place of prompts, where the pipeline takes labels: a class, or a list of them.
            height, width, num_frames: of the pictures; None as the pipeline takes them.
            solver, grid, guide, cache: a name, a spec, or an object; None as the pipeline samples by itself; "none" for
                no guide or cache.
            engine: as of `prepared`, which keeps what it makes from one call to the next; None for the pipeline's.
            steps: of the solver; None for the default of the pipeline's call, or those of given times.
            seed: a number, or a list of one per sample; seed=5 and seed=[5] are different noise, since a number gives
                each sample a seed by its index.
            batch_size: samples at a time.
            decode: whether samples are pictures in [-1, 1] [n, 3, H, W], films [n, 3, T, H, W]; False for latents.
            noise: unit noise to begin with instead of the seeds', in the shape of the latents.
            image: what is edited: PIL pictures or tensors in [-1, 1], whose size is the samples' where none is given;
                or the file of one, which is scaled and cropped; or latents.
            mask: white or 1 where it is painted anew, black or 0 where it is kept: a PIL picture, the file of one, a
                tensor [n, 1, H, W] in [0, 1] in pixels, of which latents get the mean, or one in the shape of latents.
            strength: share of the steps that is done from the noised image, in (0, 1].
            trajectory, callback, progress: as of gen.Pipeline.sample.

        Raises:
            UserError: for what the pipeline does not take, in its own words or ours.
        """
        size = (height, width) if height or width or isinstance(image, (str, Path)) else self._size_of(image)
        fast = self if engine is None else self.prepared(engine)
        sized = fast.resized(*size, num_frames).guided(guide, negative)
        pipeline = sized.pipeline
        if cache not in (None, "none"):
            check_no_cache(self.pipe, self.family)
            built: Cache = build("samplers.caches", cache)
            for network in networks_of(self.pipe, self.family).values():
                check_sites(built, SiteHooks(network, attach=False))
        if steps is not None and solver is None and grid is None:
            sized.warn_of_other_rules(steps)
        cond, prompts = sized._conditions(prompt, negative, labels)
        image = None if image is None else sized._latents_of(image)
        mask = None if mask is None else sized._mask_of(mask)
        samples = pipeline.sample(
            images_per_prompt * len(next(iter(cond.values()))), cond, images_per_condition=images_per_prompt,
            solver=solver, steps=steps, grid=grid, guide=guide, cache=cache, seed=seed, batch_size=batch_size,
            noise=noise, image=image, strength=strength, mask=mask, trajectory=trajectory, callback=callback,
            progress=progress,
        )  # fmt: skip
        samples = replace(samples, prompts=tuple(one for one in prompts for _ in range(images_per_prompt)))
        return pipeline.decoded(samples, batch_size=batch_size) if decode else samples

    def warn_of_other_rules(self, steps: int) -> None:
        """Warn where the solver is the scheduler's rule in the steps of its call, and not in so many.

        Args:
            steps: of the loop.
        """
        other = self.own_of(steps)
        if other.differs and not self.own.differs:
            kind = type(self.pipe.scheduler).__name__
            warnings.warn(
                f"in {steps} steps {other.solver['name']} is only the nearest to the pipeline's {kind}: its "
                f"{', '.join(other.differs)} differs",
                stacklevel=4,
            )

    def guided(self, guide: object = None, negative: object = None) -> PromptPipeline:
        """Return the pipeline with a call that has the negative branch which a guide needs.

        Args:
            guide: as of `sample`; None for the pipeline's own guidance.
            negative: as of `sample`; UserError for one where nothing guides.
        """
        key = next((key for key in SCALES if key in parameters_of(self.pipe)), None)
        if guide == "none" or (guide is None and negative is None) or key is None:
            return self
        scale = self.call.get(key, parameters_of(self.pipe)[key].default)
        if scale is not None and scale > 1:
            return self
        if guide is None:
            raise UserError(
                f"negative: {type(self.pipe).__name__} has no guidance by itself ({key} = {scale}): give a guide, "
                "--guidance-scale 4 or guide={'name': 'cfg', 'scale': 4.0}"
            )
        return self.with_call(**{key: 2.0})  # over 1, so that the branch is there; the scale is the guide's

    def _conditions(self, prompt: object, negative: object, labels: object = None) -> tuple[Cond, Sequence[str]]:
        """Return the conditions of prompts or labels, and the prompts; of given embeddings those of the call."""
        if labels is not None and not self.takes_labels:
            has = "it was loaded with some" if LABELS in self.call else "it takes none"
            raise UserError(f"labels = {shown(labels)} for {self.name}: {has}")
        if not self.takes_prompts:
            if prompt is not None or negative is not None:
                what = "labels" if self.takes_labels else "no prompt beside the embeddings or labels in its call"
                raise UserError(f"{self.name} takes {what}{', no prompts: sample(labels=[207])' * self.takes_labels}")
            if not self.takes_labels:
                return self.heard.cond, ()
            if labels is None:
                raise UserError(f"{self.name} samples by labels: give one, such as sample(labels=[207])")
            given: Any = [labels] if isinstance(labels, int) else labels
            return self.pipeline.condition(len(given), given, 0, 1), ()
        if prompt is None and not self.prompts:
            raise UserError(f'{self.name} samples by prompts: give one, such as sample("a red fox")')
        prompts = texts_of("prompt", self.prompts if prompt is None else prompt)
        if negative is None:
            return self.encode(prompts), prompts
        against = texts_of("negative", negative)
        if len(against) not in (1, len(prompts)):
            raise UserError(f"negative: {len(against)} for {len(prompts)} prompts; give one for all, or one for each")
        against = against * len(prompts) if len(against) == 1 else against
        parts = {one: [i for i, other in enumerate(against) if other == one] for one in dict.fromkeys(against)}
        conds = [self.with_call(negative_prompt=one).encode([prompts[i] for i in rows]) for one, rows in parts.items()]
        order = torch.tensor([i for rows in parts.values() for i in rows]).argsort()
        return {key: value[order] for key, value in joined(conds).items()}, prompts

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Return the conditions of prompts, tensors [n, ...] on the CPU; each prompt is encoded once.

        Args:
            prompts: in words.

        Raises:
            UserError: where the call has embeddings in place of prompts, or the pipeline takes labels.
        """
        conditions = self.pipeline.encode_prompts
        if conditions is None:
            raise UserError(f"{self.name} has embeddings or labels in place of prompts: it takes none")
        return conditions(prompts)

    def _latents_of(self, image: Any) -> Tensor:
        """Return the latents of what is edited."""
        pipeline = self.pipeline
        if not isinstance(image, Tensor):
            image = pictures_of("image", image, 3, self._pixels)
        if image.shape[-len(pipeline.shape) :] == pipeline.shape:
            return image
        if not image.is_floating_point() or not bool((image.abs() <= 1.001).all()):
            least, most = (f"{float(value):g}" for value in image.aminmax())
            raise UserError(f"image is {image.dtype} from {least} to {most}; allowed: floats in [-1, 1], x / 127.5 - 1")
        if image.ndim < 3 or image.shape[-2:] != self._pixels:
            size, own = ("height={}, width={}".format(*pair) for pair in (image.shape[-2:], self._pixels))
            raise UserError(f"image is {list(image.shape)} where samples have {own}: give {size}, or scale it")
        rows = image if image.ndim > 3 else image[None]
        latents: Tensor = in_one_line(self.pipe, lambda: pipeline.decoder.encode(rows).cpu())
        return latents

    def _mask_of(self, mask: Any) -> Tensor:
        """Return the mask in the shape of latents."""
        if not isinstance(mask, Tensor):
            mask = (pictures_of("mask", mask, 1, self._pixels) + 1) / 2
        if mask.ndim < 2 or mask.shape[-2:] != self._pixels:
            return mask  # in the shape of latents, or refused with them
        rows = mask.reshape(-1, 1, *self._pixels)
        return in_one_line(self.pipe, lambda: self.pipeline.decoder.mask(rows))

    @cached_property
    def _pixels(self) -> tuple[int, int]:
        """The height and width of samples."""
        pipeline = self.pipeline
        height, width = pipeline.decoder.decode(torch.zeros(1, *pipeline.shape, device=pipeline.device)).shape[-2:]
        return height, width

    def _size_of(self, image: Any) -> tuple[int | None, int | None]:
        """Return height and width of pictures that are edited, where the call has no others; None for latents."""
        first = image[0] if isinstance(image, (list, tuple)) and image else image
        if self.call.get("height") or self.call.get("width"):
            return None, None
        if isinstance(first, Tensor):
            picture = first.ndim > 2 and first.shape[-3] == 3
            return (first.shape[-2], first.shape[-1]) if picture else (None, None)
        return (first.height, first.width) if hasattr(first, "convert") else (None, None)

    def _encoded(self, prompts: list[str]) -> Cond:
        """Return the conditions of prompts by the pipeline's own call."""
        call = {**self.call, **self._negative(len(prompts)), **opened(self.call)}
        with same_draws(self.pipe):
            return in_one_line(self.pipe, lambda: encode(self.pipe, prompts, family=self.family, **call))

    def _negative(self, n: int) -> dict[str, list[str]]:
        """Return the negative prompt of the call, if it has one, for n prompts."""
        given = self.call.get("negative_prompt")
        return {} if given is None else {"negative_prompt": [given] * n if isinstance(given, str) else list(given)}

    def _about(self) -> Json:
        """Return what decides conditions and pictures; {} where nothing can say so."""
        try:
            call = {key: value for key, value in self.call.items() if digest(value)}
        except TypeError:
            return {}
        files = {key: file_sha256(path) for key, path in picture_files(self.call).items()}
        about: Json = {"call": call} | ({"files": files} if files else {})
        return {} if self.folder is None else {"pipeline": str(self.folder.resolve()), **about}


LABELS = "class_labels"
ROWS = ("prompt_embeds", LABELS)  # arguments in place of prompts
SCALES = ("true_cfg_scale", "guidance_scale")  # of the negative branch, whichever comes first


@check_arguments()
def load_diffusers(
    folder_or_pipe: object,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    store: str | Path | None = None,
    prompts: Sequence[str] = (),
    family: Family | Json | str | None = None,
    **call: Any,
) -> PromptPipeline:
    """Load a pipeline of diffusers, to be sampled by prompts.

    Args:
        folder_or_pipe: a folder as DiffusionPipeline.save_pretrained writes it, on this machine, of which nothing is
            run and only safetensors are read; or a pipeline, which is used as it is.
        device: to load it on; None for the CPU, and for where a pipeline is.
        dtype: of weights and computation, such as "bfloat16"; None for float32, and for that of a pipeline. The
            sampling loop is in float32.
        store: folder that conditions of prompts are kept in, so that each is encoded once; None for memory alone.
        prompts: of samples for which none are given, in turn: what a search, an evaluation or a score is made of.
        family: how a network is called whose class the table of families has not: a class of the table that is called
            alike, such as "FluxTransformer2DModel", or a Family or its fields. Subclasses need none.
        **call: arguments of its call in place of the defaults, such as height, width, guidance_scale,
            max_sequence_length; prompt_embeds and its like in place of prompts.

    Raises:
        UserError: for what is neither, and for a pipeline that is not known.
    """
    kept, texts = None if store is None else Path(store), tuple(texts_of("prompts", prompts)) if prompts else ()
    convention = family_given(family)
    if not isinstance(folder_or_pipe, (str, Path)) or folder_or_pipe == "":
        if given := [name for name, value in {"device": device, "dtype": dtype}.items() if value is not None]:
            raise UserError(f"load_diffusers: {given[0]} is the pipeline's own: leave it out, and use pipe.to(...)")
        if not hasattr(folder_or_pipe, "components"):
            raise UserError(f"load_diffusers: got {shown(folder_or_pipe)}; allowed: a folder, or a diffusers pipeline")
        return _checked(PromptPipeline(folder_or_pipe, call, None, kept, texts, convention))
    device = "cpu" if device is None else device
    check_device(device)
    pipe = open_pipeline(Path(folder_or_pipe), dtype_of(dtype), device)
    return _checked(PromptPipeline(pipe, call, Path(folder_or_pipe), kept, texts, convention))


def _checked(loaded: PromptPipeline) -> PromptPipeline:
    """Return a pipeline whose network and arguments are known."""
    networks_of(loaded.pipe, loaded.family)
    check_call(loaded.pipe, loaded.call)
    if loaded.store is not None and loaded.folder is None:
        raise UserError("load_diffusers: store keeps conditions of a pipeline from a folder, and this one is an object")
    if loaded.takes_prompts and getattr(loaded.pipe, "text_encoder", True) is None:
        raise UserError(
            f"{type(loaded.pipe).__name__} has no text encoder: give embeddings, "
            "load_diffusers(pipe, prompt_embeds=...)"
        )
    return loaded
