"""Sample from a trained run.

gen sample runs/digits -n 64 --solver heun --steps 18 --guidance-scale 1.5 --seed 0 --out grid.png
gen sample runs/digits --cache taylorseer_lite --cache.interval 3; --guide.scale 2 alone changes the run's guide
gen sample runs/digits --adapters runs/style=0.7 runs/subject=0.3 adds adapters of the model, see docs/adapters.md
gen sample runs/digits -n 10 --image seven.png --strength 0.6; with --mask mask.png only its white is painted anew
gen sample runs/captions --prompt "a bold seven, turned left" --prompt "a thin two, upright" --images-per-label 8
gen sample sd15 --prompt "a red fox" --negative "blurry" --solver unipc --steps 12 where sd15 is a folder of diffusers

Pictures to edit are scaled and cropped to the model's size. A file.npz and a folder are filled in chunks of the batch
size, with little memory: the same command goes on where it was stopped, and several processes share out the work:
torchrun --nproc-per-node 4 -m gen sample ..., or the same command with --part 1/4 to --part 4/4.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.adapters import add_adapter_options, given_adapters
from gen.cli.lib.diffusers import add_call_option, is_pipeline, prompted
from gen.cli.lib.options import add_option, add_options, parse_part, read_as, read_spec
from gen.config.errors import UserError
from gen.config.reading import read_lines
from gen.config.spec import Json, override, spec_of
from gen.config.writing import replacing

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

    from gen.diffusion.denoiser import Cond
    from gen.eval.drawn import Decoder
    from gen.pipeline import Pipeline
    from gen.samples import Samples

SAMPLER = ("solver", "grid", "guide", "cache")
WATCHED, COLUMNS = 8, 12  # samples and states of the picture that is drawn while sampling

__all__ = [
    "add_arguments", "add_autoencoder_option", "add_sampler_options", "add_size_option", "loaded", "own_device",
    "refuse_sampler_options", "run", "sampler_options",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, run=None, n=None)
    parser.add_argument(
        "--labels", help="a class, by number or name, or a comma-separated class for each sample (default: balanced)"
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a caption; several, each with a --prompt of its own"
    )
    parser.add_argument("--prompts", type=Path, help="a text file with a caption a line, in place of --prompt")
    parser.add_argument(
        "--images-per-label", type=read_as(int, "[1, inf)"), default=1, help="samples of each label or prompt"
    )
    add_size_option(parser)
    parser.add_argument(
        "--negative", help="a class, classes as of --labels, or a caption, that the guide moves away from"
    )
    add_sampler_options(parser)
    parser.add_argument("--part", help="k/n: draw part k of n; the last part writes the file")
    add_autoencoder_option(parser)
    add_adapter_options(parser)
    parser.add_argument("--image", type=Path, help="a picture to edit, or a folder with one for each sample")
    parser.add_argument("--strength", type=float, help="of the editing, (0, 1] (default: 0.8, or 1 with a mask)")
    parser.add_argument(
        "--mask", type=Path, help="a picture, white where the image is painted anew, black where it stays"
    )
    parser.add_argument("--trajectory", type=Path, help="a new folder for a sheet of all samples after every step")
    parser.add_argument(
        "--watch",
        type=Path,
        help=f"a .png, drawn anew after every step: the first {WATCHED} samples, step by step",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    out = (
        "file.png: one sheet; file.npz: uint8 NHWC as arr_0 and labels as arr_1; else a new folder of PNGs, with the "
        "labels in dataset.json; captions are kept in the .png, as prompts of the .npz, or in metadata.jsonl"
    )
    add_option(parser, "out", Path("samples.png"), out)


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sampler, which sample, evaluate and search have in common.

    Args:
        parser: of the verb.
    """
    for name in SAMPLER:
        about = f"a name of `gen list samplers.{name}s`, or a JSON spec; its keys as --{name}.KEY (default: the run's)"
        parser.add_argument(f"--{name}", type=read_spec, help=about)
    parser.add_argument("--guidance-scale", type=float, help="the run's guide at this scale; cfg where it has none")
    add_options(parser, steps=None, seed=0, batch_size=250, weights=None, device="cpu")
    parser.add_argument("--dtype", help="of weights and computation, such as bfloat16; file: the file's own")
    parser.add_argument(
        "--engine",
        type=read_spec,
        help="a name of `gen list models.engines`, or a JSON spec: faster, and rounded otherwise, in bfloat16 where "
        "that is fast unless the spec has another dtype",
    )
    about = "to read captions: a pretrained one's folder, or a JSON spec"
    parser.add_argument("--text-encoder", type=read_spec, help=about)
    add_call_option(parser)


def add_size_option(parser: argparse.ArgumentParser) -> None:
    """Add the size of samples, which sample, evaluate and search have in common.

    Args:
        parser: of the verb.
    """
    parser.add_argument("--size", help="height and width of the samples, such as 256x384 (default: the model's own)")


def add_autoencoder_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of an autoencoder, which sample, evaluate and arena have in common.

    Args:
        parser: of the verb.
    """
    about = "to decode latents: a folder in diffusers' layout, or a JSON spec"
    parser.add_argument("--autoencoder", type=read_spec, help=about)


def sampler_options(args: argparse.Namespace, pipeline: Pipeline) -> Json:
    """Return the options of add_sampler_options as Pipeline.sample takes them.

    Args:
        args: the verb's, parsed.
        pipeline: whose guide keeps its other fields, such as channels and interval, under --guidance-scale.
    """
    if args.guide and args.guidance_scale is not None:
        raise UserError("--guide and --guidance-scale are given; give one")
    how = {name: _changed(name, getattr(args, name), pipeline) for name in SAMPLER}
    if args.guidance_scale is not None:
        own = pipeline.sampler.guide
        spec = spec_of(own) if hasattr(own, "scale") else {"name": "cfg"}
        how["guide"] = spec | {"scale": args.guidance_scale}
    return {**how, "steps": args.steps}


def _changed(name: str, spec: Any, pipeline: Pipeline) -> Any:
    """Return an option of a sampler; of keys alone, --guide.scale 2, the run's own part with these."""
    if not isinstance(spec, dict) or "name" in spec:
        return spec
    if (own := getattr(pipeline.sampler, name)) is None:
        raise UserError(f"--{name}.{next(iter(spec))}: {pipeline.name} has no {name}: give --{name} NAME, too")
    return override(own, spec)


def refuse_sampler_options(args: argparse.Namespace, reason: str, takes: Sequence[str] = ()) -> None:
    """Refuse the options of a sampler where no run is sampled.

    Args:
        args: the verb's, parsed.
        reason: the beginning of the error, "x.npz is no run".
        takes: names of those that may be given.
    """
    loading = ("size", "weights", "adapters", "ties", "dtype", "engine", "text_encoder", "autoencoder", "call", "store")
    runs = (*SAMPLER, "steps", "guidance_scale", *loading)
    given = [name.replace("_", "-") for name in runs if name not in takes and getattr(args, name, None) is not None]
    if given:
        raise UserError(f"{reason}: leave out --{', --'.join(given)}")


def own_device(device: str) -> str:
    """Return the device of this process: of several that a launcher started on a machine each has its own GPU.

    Args:
        device: of --device; "cuda" stands for any.
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def loaded(args: argparse.Namespace) -> Pipeline:
    """Load the pipeline of run, weights, device, dtype and engine.

    Args:
        args: the verb's, parsed.
    """
    from gen.pipeline import load_images

    device, encoder = own_device(args.device), args.text_encoder
    if is_pipeline(args):
        return prompted(args, device).pipeline
    if args.dtype is not None and args.engine is not None:
        raise UserError("--dtype and --engine are given; give one: the spec of an engine has a dtype of its own")
    pipeline = load_images(
        args.run, args.weights, device, dtype=args.dtype, text_encoder=encoder, **given_adapters(args)
    )
    pipeline = _resized(pipeline, getattr(args, "size", None))
    return pipeline if args.engine is None else pipeline.prepared(args.engine)


def run(args: argparse.Namespace) -> int:
    _check_out(args.out)
    if args.trajectory is not None and args.trajectory.exists():
        raise UserError(f"{args.trajectory} exists: give a new folder for the trajectory")
    pipeline = loaded(args)
    drawing = _drawing(args, pipeline)
    if args.out.suffix == ".png" or args.trajectory is not None:
        if args.part is not None:
            raise UserError("--part needs --out file.npz or a folder, and no --trajectory: their parts are kept")
        done = _draw_at_once(drawing, args)
    else:
        done = _draw_in_chunks(drawing, args)
    if done is None:  # another process writes
        return 0
    if done.get("there", drawing.n) < drawing.n:
        print(f"{args.out}: {done['there']} of {drawing.n} samples are there; the last part writes the file")
        return 0
    full = f", {done['full']:.0%} of them in full" if drawing.options["cache"] not in (None, "none") else ""
    engine = f" ({pipeline.net.about})" if pipeline.net.about else ""
    print(f"{args.out}: {drawing.n} samples, {done['nfe']:g} evaluations each{full}, {done['seconds']:.2f} s{engine}")
    return 0


@dataclass
class _Drawing:
    """What is drawn: n samples of a pipeline, decoded if they are latents, each as its index says.

    Attributes:
        decoder: a gen.eval.drawn.Decoder.
        n: number of samples.
        cond, negative: tensors [n, ...]; None for no negative one.
        prompts: the caption of each; () without captions.
        images: to edit, [n, C, H, W], [1, C, H, W] for one for all, or None.
        options: of Pipeline.sample for all of them.
    """

    decoder: Decoder
    n: int
    cond: Cond
    negative: Cond | None
    prompts: tuple[str, ...]
    images: Tensor | None
    options: Json

    def __call__(self, rows: range) -> Samples:
        part, changes = slice(rows.start, rows.stop), dict[str, Any]()
        if self.negative is not None:
            changes["negative"] = {key: value[part] for key, value in self.negative.items()}
        if self.images is not None:
            changes["image"] = self.images if len(self.images) == 1 else self.images[part]
        cond = {key: value[part] for key, value in self.cond.items()} or None
        return self.decoder.sample(len(rows), cond=cond, start=rows.start, **self.options, **changes)


def _drawing(args: argparse.Namespace, pipeline: Pipeline) -> _Drawing:
    from gen.data.lib.prompts import prompts_of
    from gen.eval.drawn import Decoder
    from gen.eval.opening import own_data
    from gen.training.held_out_pairs import held_out_pairs

    given = [f"--{key}" for key in ("labels", "prompt", "prompts") if getattr(args, key) is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given; give one")
    if args.prompts is not None and not (lines := list(read_lines(args.prompts))):
        raise UserError(f"{args.prompts} is empty: give a caption a line")
    args.prompt = args.prompt if args.prompts is None else lines
    labels = args.prompt if args.labels is None else _labels(args.labels, pipeline)
    reads = pipeline.encode_prompts is not None
    negative = args.negative if reads or args.negative is None else _labels(args.negative, pipeline, "--negative")
    negative = None if reads and is_pipeline(args) else negative  # it stands in the pipeline's call
    decoder, each = Decoder(pipeline, args.autoencoder), args.images_per_label
    options = {"seed": args.seed, "batch_size": args.batch_size, **sampler_options(args, pipeline)}
    edit = _edit(args, decoder)
    images = edit.pop("image", None)
    pairs = held_out_pairs(pipeline, lambda: own_data(pipeline), each, args.seed)
    usual = 64 if pairs is None else min(64 // each * each or each, len(pairs))
    n = args.n or len(() if images is None else images) or (len(labels) * each if isinstance(labels, list) else usual)
    if images is not None and len(images) not in (1, n):
        raise UserError(f"-n {n}, and --image holds {len(images)} pictures: give one, or one for each sample")
    if n % each:
        raise UserError(f"-n {n}, and --images-per-label {each}: give a multiple")
    cond = pipeline.condition(n, labels, 0, each)
    cond = cond if pairs is None else {**pairs.rows(0, n)[0], **({} if labels is None else cond)}
    away = None if negative is None else pipeline.condition(n, negative, 0, each)
    prompts = () if args.prompt is None else prompts_of(n, args.prompt, each)
    return _Drawing(decoder, n, cond, away, prompts, images, options | edit)


def _draw_at_once(drawing: _Drawing, args: argparse.Namespace) -> Json | None:
    """Draw a sheet, and the trajectory: each process draws its share, the first one writes; None in the others."""
    import torch

    from gen.training.distributed import gather, is_main, share

    keep = args.trajectory is not None
    drawing.options |= {"progress": not args.quiet and is_main(), "trajectory": keep}
    rows = share(drawing.n, drawing.decoder.collective)
    _watch(drawing, args)
    parts = gather(drawing(rows), drawing.decoder.collective)
    if not parts or not is_main():
        return None
    whole = replace(parts[0], x=torch.cat([part.x for part in parts]), cond=drawing.cond, prompts=drawing.prompts)
    _save(whole, args.out)
    if keep:
        _save_trajectory(torch.cat([p.trajectory for p in parts if p.trajectory is not None]), args.trajectory)
    reports = [report for part in parts for report in part.cache]
    return {
        "nfe": sum(part.nfe * len(part.x) for part in parts) / drawing.n,
        "full": sum(r.fraction_per_row for r in reports) / max(len(reports), 1),
        "seconds": max(part.seconds for part in parts),
    }


def _draw_in_chunks(drawing: _Drawing, args: argparse.Namespace) -> Json | None:
    """Draw a file of any number of samples, see gen.eval.sample_files; None in processes that do not write."""
    from gen.data.lib.tensors import content_hash
    from gen.eval.drawn import DrawnImages
    from gen.eval.sample_files import FileOfSamples
    from gen.training.signals import resumable

    began, decoder, options = time.perf_counter(), drawing.decoder, drawing.options
    edit = {key: options[key] for key in ("mask", "strength") if key in options}
    how = {key: value for key, value in options.items() if key not in ("seed", "batch_size", *edit)}
    known = DrawnImages(decoder, how, drawing.n, args.seed, args.batch_size).fingerprint
    tensors = {"images": drawing.images, "mask": edit.get("mask"), **drawing.cond}
    tensors |= {f"negative {key}": value for key, value in (drawing.negative or {}).items()}
    given = [part for key, value in sorted(tensors.items()) if value is not None for part in (key, value)]
    identity = {"samples": known, "given": content_hash(*given), "strength": edit.get("strength")}
    identity |= {"shape": list(decoder.pipeline.shape)}
    part = None if args.part is None else parse_part(args.part)
    name, labels = decoder.pipeline.name, drawing.cond.get("y")
    file = FileOfSamples(args.out, drawing.n, args.batch_size, identity, part, decoder.collective, name, args.quiet)
    _watch(drawing, args)
    with resumable(f"{args.out}: stopped; the samples that are drawn are kept, the same command goes on"):
        done = file.draw(drawing, labels, drawing.prompts)
    return None if done is None else {**done, "seconds": time.perf_counter() - began}


def _watch(drawing: _Drawing, args: argparse.Namespace) -> None:
    """Have the first samples drawn after every step, if that is asked for."""
    from gen.training.distributed import is_main

    if args.watch is not None and is_main():
        drawing.options["callback"] = _Strip(args.watch, drawing.decoder.pipeline).draw


@dataclass
class _Strip:
    """A picture of the first samples of a loop: a row for each, from left to right as the steps went by.

    Attributes:
        file: drawn anew after every step of the first batch.
        pipeline: that is sampled.
        states: so far, uint8 [k, C, H, W] each.
        done: whether the first batch is done.
    """

    file: Path
    pipeline: Pipeline
    states: list[Tensor] = field(default_factory=list)
    done: bool = False

    def draw(self, i: int, t: float, x: Tensor) -> None:
        import torch

        from gen.config.images import contact_sheet, to_uint8

        self.done = self.done or (i == 0 and bool(self.states))  # the next batch
        if self.done:
            return
        self.states.append(to_uint8(self.pipeline.net.image(x[:WATCHED]).float().cpu()))
        last = len(self.states) - 1
        shown = sorted({round(last * k / (COLUMNS - 1)) for k in range(COLUMNS)})
        images = torch.stack([self.states[k] for k in shown], 1).flatten(0, 1)
        with replacing(self.file) as partial:
            contact_sheet(images, len(shown), max(1, 32 // images.shape[-1])).save(partial)


def _edit(args: argparse.Namespace, decoder: Decoder) -> Json:
    """Return what the options of editing say, as Pipeline.sample takes it; images [k, C, H, W], or their latents."""
    import torch

    from gen.data.folder import Folder
    from gen.data.lib.pictures import read_picture

    pipeline = decoder.pipeline
    for option, given in {"mask": args.mask, "strength": args.strength}.items():
        if given is not None and args.image is None:
            raise UserError(f"--{option} is given without --image")
    drawn = any(given is not None for given in (args.image, args.trajectory, args.watch))
    if drawn and pipeline.no_pictures and pipeline.decoder is None:
        raise UserError(f"--image, --trajectory, --watch: {pipeline.no_pictures}; Pipeline.sample takes latents too")
    if args.image is None:
        return {}
    channels, height, width = decoder.shape[0], *decoder.shape[-2:]
    if args.image.is_dir():
        pictures = Folder(str(args.image), (height, width), channels, holdout=0.0).open("train")
        images = torch.stack([pictures[i]["x"] for i in range(len(pictures))])
    else:
        images = read_picture(args.image, (channels, height, width))[None]
    mask = None if args.mask is None else (read_picture(args.mask, (1, height, width)) + 1) / 2
    if pipeline.decoder is not None:
        images = pipeline.decoder.encode(images).cpu()
        mask = None if mask is None else pipeline.decoder.mask(mask[None])
    return {"image": images, "mask": mask, "strength": args.strength}


def _resized(pipeline: Pipeline, size: str | None) -> Pipeline:
    """Return the pipeline for samples of the size that is asked for."""
    from gen.data.lib.pictures import read_size

    given = None if size is None else read_size(size, "--size")
    if given is None:
        return pipeline
    pair = given if isinstance(given, tuple) else (given, given)
    if min(pair) < 1:
        raise UserError(f"--size {size}: height and width must be at least 1")
    return pipeline.resized(*pair)


def _labels(text: str, pipeline: Pipeline, option: str = "--labels") -> Any:
    """Return numbers, or names that the model's labels have."""
    words: list[Any] = [word.strip() for word in text.split(",")]
    known = (pipeline.info or {}).get("labels") or []
    try:
        labels = [word if word in known else int(word) for word in words]
    except ValueError:
        names = f", or names: {', '.join(known[:20])}" if known else ""
        raise UserError(f"{option} {text!r}: expected whole numbers, separated by commas{names}") from None
    return labels[0] if len(labels) == 1 else labels


def _check_out(out: Path) -> None:
    """Refuse, before any work, to overwrite anything but a file of the same kind."""
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UserError(f"--out {out}: pictures are written as PNG: give a .png or .npz file, or a new folder")
    if out.suffix not in (".png", ".npz") and out.exists():
        raise UserError(f"{out} exists: give a new folder, or a .png or .npz file")
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected a file")


def _save(samples: Samples, out: Path) -> None:
    from gen.eval.sample_files import write_samples

    if out.suffix != ".png":
        write_samples(out, samples.uint8(), samples.cond.get("y"), samples.prompts)
        return
    with replacing(out) as partial:
        samples.sheet(zoom=max(1, 32 // samples.x.shape[-1])).save(partial, pnginfo=_noted(samples.prompts))


def _noted(prompts: Sequence[str]) -> PngInfo | None:
    """Return the captions as a text of a .png, "prompts", a JSON list; None without captions."""
    from PIL.PngImagePlugin import PngInfo

    if not prompts:
        return None
    info = PngInfo()
    info.add_itxt("prompts", json.dumps(list(prompts), ensure_ascii=False))
    return info


def _save_trajectory(states: Tensor, folder: Path) -> None:
    """Write step-000.png, step-001.png, ...: a sheet of all samples [n, steps + 1, C, H, W] at each time."""
    from gen.config.images import contact_sheet, to_uint8

    with replacing(folder) as partial:
        partial.mkdir()
        for step in range(states.shape[1]):
            sheet = contact_sheet(to_uint8(states[:, step]), 10, max(1, 32 // states.shape[-1]))
            sheet.save(partial / f"step-{step:03d}.png")
