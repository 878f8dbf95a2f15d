"""A trained model ready to sample: `gen.load("runs/teacher").sample(16, solver="heun", steps=18)`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.devices import check_device
from gen.config.errors import UserError, nearest, shown
from gen.config.fields import check_arguments, check_fields
from gen.config.hub import local_folder
from gen.config.spec import Json, Spec, name_of
from gen.config.trust import allowing
from gen.data.lib.autoencoders import build_autoencoder
from gen.data.lib.learned import latent_of, latent_scale, learned_data, no_pictures
from gen.data.lib.prompts import ENCODER_MISSING, prompt_encoder, prompts_of
from gen.diffusion.composition import compose
from gen.diffusion.contracts import Cache, Grid, Guide, Solver
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.dtypes import computation_dtype
from gen.diffusion.editing import Edit, batched, new_state
from gen.diffusion.net import NetMembers, members, unwrap
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import integrate
from gen.restoration import restore
from gen.samples import Samples
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline, engine_of
from gen.training.buckets import check_size
from gen.training.log import ProgressBar
from gen.training.merging import adapter_label, add_adapters
from gen.training.run import Sampler, run_from
from gen.training.stored_network import stored_network

__all__ = ["Pipeline", "is_pipeline_folder", "load", "load_images"]


@dataclass(eq=False)
class _Batch:
    """The steps of one batch: what is edited, recorded and shown after each."""

    path: NoisePath
    picture: Callable[[Tensor], Tensor]
    unit: Tensor
    count: int
    edit: Edit | None
    callback: Callable[[int, float, Tensor], Tensor | None] | None
    bar: ProgressBar
    states: list[Tensor] | None = None

    def begin(self, t: Tensor, std: float | None, trajectory: bool) -> Tensor:
        """Return x at the first time, of a standard deviation or of the path's."""
        x = self.path.start(self.unit, t) if std is None else self.unit * std
        x = x if self.edit is None else self.path.mix(self.edit.image, self.unit, t)
        self.states = [self.picture(x).float().cpu()] if trajectory else None
        return x

    def after(self, i: int, t: Tensor, x: Tensor) -> Tensor:
        """Return x after a step, edited."""
        self.bar.advance()
        if self.edit is not None:
            s = t if i + 1 < self.count else torch.zeros_like(t)  # the image itself, where a grid ends above 0, too
            x = self.edit.blend(self.path, x, self.unit, s)
        changed = None if self.callback is None else self.callback(i, float(t), x)
        x = x if changed is None else new_state(changed, x)
        if self.states is not None:
            self.states.append(self.picture(x).float().cpu())
        return x


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A denoiser, ready to sample.

    Attributes:
        denoiser: a trained network, or any other.
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for an unconditional model.
        sampler: the default of `sample`.
        name: in messages and on pages.
        params: number of parameters.
        device: of the network.
        folder: that it was loaded from; None for none.
        weights: label of the average that was loaded, or "raw".
        info: the checkpoint's manifest; None without one.
        engine: that the network was prepared by, see `prepared`; None for the network itself.
        encode_prompts: from captions to their condition (gen.data.lib.prompts); None without captions.
        decoder: decodes its samples to pictures or films in [-1, 1], by `decode(z)`; None for samples that are
            pictures, and for latents whose autoencoder is named where they are decoded.
    """

    denoiser: DenoiserLike
    shape: tuple[int, ...]
    classes: int = 0
    sampler: Sampler = field(default_factory=Sampler)
    name: str = "model"
    params: int = 0
    device: torch.device | str = "cpu"
    folder: Path | None = None
    weights: str = "raw"
    info: Json | None = None
    engine: Any = None
    encode_prompts: Callable[[Sequence[str]], Cond] | None = None
    decoder: Any = None

    def __post_init__(self) -> None:
        check_fields(self, classes="[0, inf)", params="[0, inf)")
        check_device(self.device)

    def __repr__(self) -> str:
        kind = type(self.denoiser.net if isinstance(self.denoiser, Denoiser) else self.denoiser).__name__
        shape, how = " x ".join(map(str, self.shape)), self.sampler
        solver = f"{name_of(type(how.solver))}, {how.steps} step{'s' if how.steps > 1 else ''}"
        return (
            f"Pipeline({self.name}: {kind}, {self.params:,} parameters ({self.weights}), {shape}, "
            f"{self.classes} classes, {solver}, {self.device})"
        )

    @check_arguments(n="[1, 10000000]", batch_size="[1, inf)", start="[0, inf)", images_per_condition="[1, inf)")
    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        cond: Cond | Sequence[int | str] | int | str | None = None,
        *,
        images_per_condition: int = 1,
        negative: Cond | Sequence[int | str] | int | str | None = None,
        solver: Solver | Spec | None = None,
        steps: int | None = None,
        grid: Grid | Spec | Sequence[float] | None = None,
        guide: Guide | Spec | None = None,
        cache: Cache | Spec | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 250,
        start: int = 0,
        noise: Tensor | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Tensor | None = None,
        trajectory: bool = False,
        callback: Callable[[int, float, Tensor], Tensor | None] | None = None,
        progress: bool = False,
    ) -> Samples:
        """Return n samples. Sample i depends on its seed and its index alone, never on batch_size.

        With an image it edits: image to image, or with a mask inpainting (gen.diffusion.editing.Edit).

        Args:
            n: how many; None for images_per_condition of each condition.
            cond: a label, one for each sample, or a mapping of tensors [n, ...]; None for balanced labels i % classes.
                A label is a number, or the name of a class folder. To a model of captions a caption, or one for each
                sample, beside which the label is none; None for no caption.
            images_per_condition: consecutive samples that share a condition; then cond has n / images_per_condition.
            negative: what a guide moves away from, in place of no condition: a label, a caption, or as cond.
            solver, guide, cache: a name, a spec, or an object; None as the model was trained to be sampled; "none" for
                no guide or cache.
            steps: of the solver; None as the model was trained to be sampled, or those of given times.
            grid: a name, a spec, an object, or the times themselves.
            seed: a number, or a list of one per sample; seed=5 and seed=[5] are different noise, since a number gives
                each sample a seed by its index.
            batch_size: samples at a time.
            start: index of the first sample.
            noise: unit noise to begin with instead of the seeds', [n, C, H, W], or [C, H, W] for all.
            image: what is edited, tensors [n, C, H, W] in [-1, 1], one for all, or PIL pictures.
            strength: share of the steps that is done from the noised image, in (0, 1]; None for 0.8, or 1 with a mask.
            mask: [n, 1, H, W] or one for all, [H, W]: 1 where it is painted anew, 0 where the image is kept.
            trajectory: whether the samples have the states of all steps, too.
            callback: called after every step with its index, its end's time and the batch's x on the device; a tensor
                that it returns becomes x.
            progress: whether progress is shown on the terminal.
        """
        how = self.plan(solver=solver, steps=steps, grid=grid, guide=guide, cache=cache)
        n = self._count(n, cond, images_per_condition)
        seeds = sample_seeds(seed, n, start)
        captions = cond
        cond = self.condition(n, captions, start, images_per_condition)
        prompts = () if self.encode_prompts is None else prompts_of(n, captions, images_per_condition)
        against = None if negative is None else self.condition(n, negative, start, images_per_condition)
        shape = self.state_shape
        edit = self.net.check_edit(Edit.of(image, mask, strength, n, shape))
        units = None if noise is None else batched("noise", noise, n, shape, channels=shape[:1])
        times = how.grid.times(self.denoiser.path, how.steps)
        times = times if edit is None else edit.times(times)
        net, parts, images, reports, evaluations = self.net, list[_Batch](), [], [], 0
        began = time.perf_counter()
        bar = ProgressBar(f"{self.name}, steps", -(-n // batch_size) * (len(times) - 1), quiet=not progress)
        for first in range(0, n, batch_size):
            rows = slice(first, min(first + batch_size, n))
            drawn = Noise(tuple(seeds[rows]))
            unit = (drawn.normal("start", shape) if units is None else units[rows].float()).to(self.device)
            given = net.with_base({k: v[rows].to(self.device) for k, v in cond.items()}, shape[-2:])
            away = None if against is None else {k: v[rows].to(self.device) for k, v in against.items()}
            loop = compose(self.denoiser, times, how.solver, how.guide, given, unit, away)
            count = len(loop.grid) - 1
            session = None if how.cache is None else how.cache.start(count)
            tap = net.loop_tap(count, session)
            batch = _Batch(loop.f.path, net.pictures(given), unit, count, edit and edit.rows(rows, unit), callback, bar)
            x = batch.begin(times[0], how.start_std(self.denoiser.path), trajectory)
            with net.taps_kept():
                x = integrate(loop.f, x, loop.grid, how.solver, cond=given, noise=drawn, tap=tap, watch=batch.after)
            images.append(batch.picture(x).float().cpu())
            parts, evaluations = [*parts, batch], evaluations + loop.rows
            reports += [] if session is None else [session.report()]
        bar.close()
        seconds, x = time.perf_counter() - began, torch.cat(images)
        states = torch.cat([torch.stack(batch.states, 1) for batch in parts if batch.states]) if trajectory else None
        return Samples(x, cond, evaluations / n, seconds, reports, self.net.about, self.no_pictures, states, prompts)

    restore = restore

    def prepared(self, engine: object = "auto") -> Pipeline:
        """Return the pipeline with a network prepared by an engine of gen.models.engines: a name, a spec or an object.

        Samples are the same within the rounding of the engine's dtype, which `Samples.engine` names.
        """
        if not isinstance(self.denoiser, Denoiser):
            raise UserError(f"{self.name} is no network, and an engine prepares networks")
        if self.engine is not None:
            raise UserError(f"{self.name} is prepared already; prepare the pipeline that was loaded")
        built = engine_of(engine)
        net, under = self.denoiser.net, getattr(self.denoiser.net, "under", None)  # of one that stays as it is
        net = under(built) if under and getattr(built, "copies", True) else built.prepare(net, self.device)
        return replace(self, denoiser=replace(self.denoiser, net=net), engine=built)

    @check_arguments(batch_size="[1, inf)")
    @torch.no_grad()
    def decoded(self, samples: Samples, autoencoder: object = None, batch_size: int = 8) -> Samples:
        """Return latents as images: decode(x / scale + shift), scale and shift those that the checkpoint has.

        Args:
            samples: of a model of latents.
            autoencoder: a name of gen.models.autoencoders, a spec, or the folder of one in diffusers' layout; or what
                `coder` returns for it. None for the pipeline's own decoder.
            batch_size: images at a time, apart from sampling's: a decoder's memory grows faster with it than a
                denoiser's.
        """
        coder: Any = autoencoder if hasattr(autoencoder, "decode") else self.coder(autoencoder)
        if coder is self.decoder:
            return self._with_pictures(samples, coder, samples.x, batch_size)
        scale, shift = latent_scale(self.info, self.folder)
        x, sizes = samples.x, [(n, 1) for n in samples.x.shape[1:]]
        if x.ndim != 4 or any(n not in of for v in (scale, shift) for n, of in zip(v.shape, sizes, strict=True)):
            raise UserError(f"decoded: samples are {list(x.shape)}, the latents' scale is {list(scale.shape)}")
        expected, own = latent_of(self.info).get("image_range"), getattr(coder, "image_range", None)
        if expected and own and list(own) != list(expected):
            raise UserError(f"decoded: the autoencoder's image_range is {own}, the latents' {expected}")
        return self._with_pictures(samples, coder, samples.x / scale + shift, batch_size)

    def _with_pictures(self, samples: Samples, coder: Any, z: Tensor, batch_size: int) -> Samples:
        """Return samples with the pictures of latents in place of their x."""
        began = time.perf_counter()
        parts = (z[i : i + batch_size].to(self.device) for i in range(0, len(z), batch_size))
        x = torch.cat([coder.decode(part).cpu() for part in parts])
        return replace(samples, x=x, seconds=samples.seconds + time.perf_counter() - began, no_pictures="")

    @property
    def no_pictures(self) -> str:
        """The reason why samples are no pictures: latents, points, or another number of channels; "" if they are."""
        return no_pictures(self.shape, learned_data(self.info), bool(latent_of(self.info)), self.name)

    def check_pixels(self) -> None:
        """Refuse a model whose samples are no pictures."""
        if self.no_pictures:
            raise UserError(self.no_pictures)

    def coder(self, autoencoder: object) -> Any:
        """Load the autoencoder of `decoded`; UserError if there is none, or if no latents are sampled."""
        if self.decoder is not None:
            if autoencoder is not None:
                raise UserError(f"{self.name} decodes its samples itself: leave out the autoencoder")
            return self.decoder
        latent_scale(self.info, self.folder)
        coder = build_autoencoder(autoencoder)
        known_range = latent_of(self.info).get("image_range")
        if known_range and getattr(coder, "image_range", known_range) is None:
            coder = replace(coder, image_range=tuple(known_range))
        encoded = latent_of(self.info).get("autoencoder")
        if isinstance(encoded, dict) and hasattr(coder, "identity") and coder.identity()["sha256"] != encoded["sha256"]:
            warnings.warn(
                f"{self.name}: its latents are of an autoencoder with other weights than {coder}", stacklevel=3
            )
        return coder.load(self.device)

    @check_arguments(height="[1, 1000000]", width="[1, 1000000]")
    def resized(self, height: int, width: int) -> Pipeline:
        """Return the pipeline for samples of another height and width, in pixels of x; a warning for untrained ones.

        Raises:
            UserError: for a model that has no such x; see `size_step` of gen.diffusion.net.Net.
        """
        if self.decoder is not None:
            raise UserError(f"{self.name} is heard for one size: give height and width to gen.load_diffusers")
        shape, spec = (self.shape[0], height, width), getattr(unwrap(self._network), "spec", None)
        check_size(self.name, spec, {"shape": list(self.shape), **(self.info or {})}, shape)
        return replace(self, shape=shape)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one state of the loop, which may hold more than the image: see gen.models.reg."""
        own = self.net.state_shape
        return self.shape if own is None or len(own) == len(self.shape) else own

    @property
    def _network(self) -> nn.Module:
        return self.denoiser.net if isinstance(self.denoiser, Denoiser) else nn.Identity()

    @property
    def net(self) -> NetMembers:
        """The network's optional members; their defaults for a denoiser without a network."""
        return members(self._network)

    def plan(self, **changes: object) -> Sampler:
        """Return the default sampler with the changes that are not None; "none" leaves out its guide or its cache.

        Times that are given decide the steps where these are not.
        """
        fields = Sampler.__dataclass_fields__
        for key in changes.keys() - fields.keys():
            raise UserError(f"unknown key {key!r} of Sampler. {nearest(key, fields)}")
        given: Json = {k: v for k, v in changes.items() if v is not None}
        given |= {k: None for k, v in given.items() if isinstance(v, str) and v == "none"}
        return self.sampler.changed(given)

    def _count(self, n: int | None, cond: object, each: int) -> int:
        """Return the number of samples: n, or `each` for every condition."""
        many = isinstance(cond, (Mapping, Iterable)) and not isinstance(cond, str)
        rows = next(iter(cond.values()), [None]) if isinstance(cond, Mapping) else cond
        lone = isinstance(rows, Tensor) and rows.ndim == 0  # which `condition` refuses
        known = len(rows) if many and not lone and hasattr(rows, "__len__") else 1
        if not known:
            raise UserError(f"cond = {shown(cond)}; allowed: at least one condition, or None")
        n = known * each if n is None else n
        if n % each:
            raise UserError(f"n = {n} and images_per_condition = {each}: n must be a multiple")
        return n

    def condition(
        self, n: int, cond: Cond | Sequence[int | str] | int | str | None = None, start: int = 0, each: int = 1
    ) -> Cond:
        """Return the condition of n samples as tensors [n, ...], each row `each` times in turn, from sample `start` on.

        Raises:
            UserError: for labels that do not exist, and for another number of rows than n / each.
        """
        if each > 1:
            if start % each:
                raise UserError(f"start = {start} and images_per_condition = {each}: start must be a multiple")
            few = self.condition(n // each, cond, start // each)
            return {key: value.repeat_interleave(each, 0) for key, value in few.items()}
        if cond is None and (prompts := getattr(self.encode_prompts, "prompts", None)) is not None:
            if not prompts:
                raise UserError(f"{self.name} samples by prompts: give --prompt TEXT, in Python cond=TEXT")
            cond = [prompts[i % len(prompts)] for i in range(start, start + n)]
        if isinstance(cond, Mapping):
            for key, value in cond.items():
                if not isinstance(value, Tensor) or not value.ndim:
                    raise UserError(f"cond[{key!r}] = {value!r}; it must be a tensor with {n} rows")
                if len(value) != n:
                    raise UserError(f"cond[{key!r}] has {len(value)} rows for {n} samples")
            last = self.classes - (not self.net.null_class)
            if self.classes and "y" in cond and not bool(((cond["y"] >= 0) & (cond["y"] <= last)).all()):
                said = ", the last for no class" if self.net.null_class else ", none of them for no class"
                raise UserError(f"cond['y'] = {shown(cond['y'].tolist())}; allowed: 0 .. {last}{said}")
            return cond
        if prompts := prompts_of(n, cond, encode=self.encode_prompts):
            if self.encode_prompts is not None:
                none = {"y": torch.full((n,), self.classes)} if self.classes else {}
                return {**none, **self.encode_prompts(prompts)}
            if hasattr(getattr(unwrap(self._network), "spec", None), "text_width"):
                raise UserError(f"{self.name} takes captions by an encoder: {ENCODER_MISSING}")
        if not self.classes:
            if cond is not None and self.encode_prompts is not None:
                raise UserError(
                    f"{self.name} takes captions, in words: {shown(cond)} is none; give --prompt TEXT, in "
                    "Python cond=TEXT"
                )
            if cond is not None:
                raise UserError(f"{self.name} is unconditional: it takes no labels and no captions, got {shown(cond)}")
            return {}
        labels: list[Any] = [i % self.classes for i in range(start, start + n)] if cond is None else [cond] * n
        if isinstance(cond, Iterable) and not isinstance(cond, str):
            labels = list(cond)
        known = (self.info or {}).get("labels") or []
        labels = [known.index(y) if isinstance(y, str) and y in known else y for y in labels]
        whole = all(hasattr(y, "__index__") and not isinstance(y, type) for y in labels)
        if len(labels) != n or not whole or not all(0 <= y < self.classes for y in labels):
            named = f" ({', '.join(known[:20])}{', ...' if len(known) > 20 else ''})" if known else ""
            if words := [y for y in labels if isinstance(y, str)]:
                raise UserError(
                    f"{self.name} takes labels, and {shown(words[0])} is none of 0 .. {self.classes - 1}{named}: give "
                    "--labels 0,1,2, in Python cond=[0, 1, 2]"
                )
            raise UserError(f"labels {shown(labels)} for {n} samples; allowed: {n} of 0 .. {self.classes - 1}{named}")
        return {"y": torch.tensor([int(y) for y in labels])}


@check_arguments()
def load(
    folder: str | Path,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    allow: Sequence[str] = (),
    dtype: torch.dtype | str | None = None,
    model: object = None,
    text_encoder: object = None,
    tensor_parallel: int | None = None,
    max_memory: Mapping[str, Any] | None = None,
    adapters: Sequence[Any] = (),
    ties: float | None = None,
) -> Any:
    """Load the model of a run folder or of one checkpoint: a Pipeline, or a TextPipeline for a text model.

    Args:
        folder: of a run, or of one of its checkpoints; or a name on Hugging Face's hub with its revision,
            "hf:owner/name@revision" (gen.config.hub).
        weights: the label of an average ("ema"), or "raw"; None for the first average there is.
        device: to load it on, such as "cuda:1".
        allow: packages ("my_pkg"), modules or classes ("my_pkg.mod:Class") that the folder may name: what it names
            beside gen's own plug-ins is code, which is run only if it is allowed here.
        dtype: of the weights and of the computation, such as "bfloat16"; "file" for that of the file; None for the
            network's own, float32, and for that of the file of a text model, which may be bfloat16 for its size.
        model: the network of a run that was given it as an object (gen.models.given): a module, or the name
            "my_pkg.mod:MyNet" of a class that takes no arguments.
        text_encoder: that captions are read by, for a model that was trained on its embeddings: a spec of
            gen.models.text_encoders, or the folder of a pretrained one.
        tensor_parallel: number of processes, started by torchrun, over which a text model's weights are shared out:
            each reads its part, and all decode the same prompts together (gen.text.placement).
        max_memory: of a text model that does not fit: what each GPU by its number, and "cpu", may hold of it, such as
            {"0": "20GiB", "cpu": "40GiB"}; further blocks are read from their file whenever they compute. {} for all
            memory that is free.
        adapters: pairs of a run's folder and a factor: adapters of this model, which are added to its weights, see
            gen.training.merging.
        ties: the share of changes that TIES keeps of each; None to add them up.

    Raises:
        UserError: if the folder is none of gen's, if any byte of it is damaged, or if it names code of others.
    """
    folder = local_folder(folder)
    if is_pipeline_folder(folder):
        raise UserError(f"{folder} is a pipeline of diffusers: load it by gen.load_diffusers({str(folder)!r})")
    checkpoint = checkpoints.locate(folder)
    check_device(device)
    info = checkpoints.read(checkpoint, verify=False)
    if missing := [key for key in ("run", "role", "shape", "classes") if key not in info]:
        raise UserError(f"{checkpoint} is no checkpoint of a model: it does not say {', '.join(missing)}")
    with allowing(allow):
        run = run_from(info["run"], folder)
        if hasattr(run.model, "found"):
            run = replace(run, model=run.model.found(model, folder))
        elif model is not None:
            raise UserError(f"model: {folder} says itself how its network is built, and takes none")
    labels = [average.label for average in run.ema]
    chosen = (labels[0] if labels else "raw") if weights is None else weights
    if chosen not in [*labels, "raw"]:
        raise UserError(f"{checkpoint} has no weights {chosen!r}; it has {', '.join([*labels, 'raw'])}")
    role = info["role"]
    file = f"{role}.safetensors" if chosen == "raw" else f"{role}-{chosen}.safetensors"
    dtype = "file" if dtype is None and isinstance(run.sampler, Decoding) else dtype
    placed = (dtype, device, tensor_parallel, max_memory, allow)
    with allowing(allow):
        net, device = stored_network(run, checkpoint, file, info, *placed)
        if adapters:
            info = {**info, "adapters": add_adapters(net, run, chosen, folder, adapters, ties)}
    used = computation_dtype(net)
    about: Json = {  # the fields that both kinds of pipeline have
        "name": " + ".join([folder.resolve().name, *map(adapter_label, info.get("adapters", {}).get("runs", ()))]),
        "params": sum(p.numel() for p in net.parameters()),
        "device": device,
        "folder": folder,
        "weights": chosen,
        "info": info,
    }
    if isinstance(run.sampler, Decoding):
        tokenizer = getattr(run.model, "tokenizer", None) or getattr(run.data, "tokenizer", None)
        if tokenizer is not None and hasattr(tokenizer, "with_files_in"):  # its file lies with the weights
            tokenizer = tokenizer.with_files_in(checkpoint)
        how, about["path"] = run.sampler.with_files_in(checkpoint), run.path
        return TextPipeline(net, tokenizer, how, info["shape"][0], run.data, **about)
    f = Denoiser(net, run.path, run.parameterisation, dtype=used)
    about |= {"sampler": run.sampler, "encode_prompts": prompt_encoder(run.data, text_encoder)}
    about |= run.model.pipeline_fields(run.sampler, device) if hasattr(run.model, "pipeline_fields") else {}
    return Pipeline(f, tuple(info["shape"]), info["classes"], **about)


def is_pipeline_folder(folder: str | Path) -> bool:
    """Return whether a folder holds a pipeline as diffusers saves it.

    Args:
        folder: any path.
    """
    return (Path(folder) / "model_index.json").is_file()


def load_images(folder: str | Path, *given: Any, **options: Any) -> Pipeline:
    """Load a model that is sampled; UserError for a text model.

    Args:
        folder, *given, **options: as of `load`.
    """
    if is_pipeline_folder(folder):
        import gen

        if given or options.keys() - {"allow"}:
            raise UserError(f"{folder} is a pipeline of diffusers: load it by gen.load_diffusers, and give the object")
        prompted: Pipeline = gen.load_diffusers(folder).pipeline
        return prompted
    pipeline = load(folder, *given, **options)
    if not isinstance(pipeline, Pipeline):
        raise UserError(
            f"{folder} is a text model, which is decoded, not sampled: see gen decode --help, and gen perplexity --help"
        )
    return pipeline
