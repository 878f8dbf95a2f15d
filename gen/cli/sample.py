"""Sample from a trained run.

gen sample runs/digits -n 64 --solver heun --steps 18 --guidance-scale 1.5 --seed 0 --out grid.png
gen sample runs/digits -n 10 --image seven.png --strength 0.6; with --mask mask.png only its white is painted anew

Pictures to edit are scaled and cropped to the model's size.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.options import add_option, add_options, parse_spec
from gen.config.errors import UserError
from gen.config.spec import Json, spec_of
from gen.config.writing import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from gen.pipeline import Pipeline, Samples

__all__ = ["add_arguments", "add_sampler_options", "loaded", "own_device", "run", "sampler_options"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, run=None, n=None)
    parser.add_argument(
        "--labels", help="a class, by number or name, or a comma-separated class for each sample (default: balanced)"
    )
    add_sampler_options(parser)
    parser.add_argument("--autoencoder", help="to decode latents: a folder in diffusers' layout, or a JSON spec")
    parser.add_argument("--image", type=Path, help="a picture to edit, or a folder with one for each sample")
    parser.add_argument("--strength", type=float, help="of the editing, (0, 1] (default: 0.8, or 1 with a mask)")
    parser.add_argument(
        "--mask", type=Path, help="a picture, white where the image is painted anew, black where it stays"
    )
    parser.add_argument("--trajectory", type=Path, help="a new folder for a sheet of all samples after every step")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    out = "file.png: one sheet; file.npz: uint8 NHWC as arr_0 and labels as arr_1; else a new folder of PNGs"
    add_option(parser, "out", Path("samples.png"), out)


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sampler, which sample, evaluate and search have in common.

    Args:
        parser: of the verb.
    """
    parser.add_argument("--solver", help="a name of `gen list samplers.solvers`, or a JSON spec (default: the run's)")
    parser.add_argument("--grid", help="a name of `gen list samplers.grids`, or a JSON spec (default: the run's)")
    parser.add_argument("--guide", help="a name of `gen list samplers.guides`, or a JSON spec (default: the run's)")
    parser.add_argument("--cache", help="a name of `gen list samplers.caches`, or a JSON spec (default: the run's)")
    parser.add_argument("--guidance-scale", type=float, help="the run's guide at this scale; cfg where it has none")
    add_options(parser, steps=None, seed=0, batch_size=250, weights=None, device="cpu")
    parser.add_argument("--dtype", help="of weights and computation, such as bfloat16; file: the file's own")
    parser.add_argument(
        "--engine",
        help="a name of `gen list models.engines`, or a JSON spec: faster, and rounded otherwise, in bfloat16 where "
        "that is fast unless the spec has another dtype",
    )


def sampler_options(args: argparse.Namespace, pipeline: Pipeline) -> Json:
    """Return the options of add_sampler_options as Pipeline.sample takes them.

    Args:
        args: the verb's, parsed.
        pipeline: whose guide keeps its other fields, such as channels and interval, under --guidance-scale.
    """
    if args.guide and args.guidance_scale is not None:
        raise UserError("--guide and --guidance-scale are given; give one")
    guide = parse_spec(args.guide)
    if args.guidance_scale is not None:
        own = pipeline.sampler.guide
        spec = spec_of(own) if hasattr(own, "scale") else {"name": "cfg"}
        guide = spec | {"scale": args.guidance_scale}
    return {
        "solver": parse_spec(args.solver),
        "steps": args.steps,
        "grid": parse_spec(args.grid),
        "guide": guide,
        "cache": parse_spec(args.cache),
    }


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

    if args.dtype is not None and args.engine is not None:
        raise UserError("--dtype and --engine are given; give one: the spec of an engine has a dtype of its own")
    pipeline = load_images(args.run, args.weights, own_device(args.device), dtype=args.dtype)
    return pipeline if args.engine is None else pipeline.prepared(parse_spec(args.engine))


def run(args: argparse.Namespace) -> int:
    _check_out(args.out)
    if args.trajectory is not None and args.trajectory.exists():
        raise UserError(f"{args.trajectory} exists: give a new folder for the trajectory")
    pipeline = loaded(args)
    labels = None if args.labels is None else _labels(args.labels, pipeline)
    coder = None if args.autoencoder is None else pipeline.coder(parse_spec(args.autoencoder))
    if coder is None:
        pipeline.check_pixels()
    options = {"seed": args.seed, "batch_size": args.batch_size, **sampler_options(args, pipeline)}
    options |= {"progress": not args.quiet, "trajectory": args.trajectory is not None, **_edit(args, pipeline)}
    n = args.n or len(options.get("image", ())) or 64
    samples = _sample(pipeline, n, labels, options, coder)
    if samples is None:  # another process writes
        return 0
    _save(samples, args.out)
    if samples.trajectory is not None:
        _save_trajectory(samples.trajectory, args.trajectory)
    reports = samples.cache
    full = f", {sum(r.fraction for r in reports) / len(reports):.0%} of them in full" if reports else ""
    engine = f" ({samples.engine})" if samples.engine else ""
    print(f"{args.out}: {n} samples, {samples.nfe:g} evaluations each{full}, {samples.seconds:.2f} s{engine}")
    return 0


def _sample(pipeline: Pipeline, n: int, labels: Any, options: Json, coder: Any) -> Samples | None:
    """Return all samples, of which each process of a launcher makes its share; None in all processes but the first."""
    import torch

    from gen.training.distributed import gather, is_main, share

    collective = getattr(pipeline.engine, "collective", False)
    rows, cond = share(n, collective), pipeline.condition(n, labels)
    mine = {key: value[rows.start : rows.stop] for key, value in cond.items()}
    options["progress"] = options["progress"] and is_main()
    if len(images := options.get("image", ())) not in (0, 1, n):
        raise UserError(f"-n {n}, and --image holds {len(images)} pictures: give one, or one for each sample")
    if len(images) == n:
        options["image"] = images[rows.start : rows.stop]
    samples = pipeline.sample(len(rows), mine, start=rows.start, **options)
    parts = gather(samples if coder is None else pipeline.decoded(samples, coder), collective)
    if not parts or not is_main():
        return None
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        x=torch.cat([part.x for part in parts]),
        cond=cond,
        nfe=sum(part.nfe * len(part.x) for part in parts) / n,
        seconds=max(part.seconds for part in parts),
        trajectory=None
        if not options["trajectory"]
        else torch.cat([p.trajectory for p in parts if p.trajectory is not None]),
        cache=[report for part in parts for report in part.cache],
    )


def _edit(args: argparse.Namespace, pipeline: Pipeline) -> Json:
    """Return what the options of editing say, as Pipeline.sample takes it; images [k, C, H, W]."""
    import torch

    from gen.data.folder import Folder, read_picture

    for option, given in {"mask": args.mask, "strength": args.strength}.items():
        if given is not None and args.image is None:
            raise UserError(f"--{option} is given without --image")
    drawn = args.image is not None or args.trajectory is not None
    if drawn and pipeline.no_pictures:
        raise UserError(f"--image, --trajectory: {pipeline.no_pictures}; Pipeline.sample in Python takes latents too")
    if args.image is None:
        return {}
    channels, height, width = pipeline.shape
    if args.image.is_dir():
        pictures = Folder(str(args.image), (height, width), channels, holdout=0.0).open("train")
        images = torch.stack([pictures[i]["x"] for i in range(len(pictures))])
    else:
        images = read_picture(args.image, pipeline.shape)[None]
    mask = None if args.mask is None else (read_picture(args.mask, (1, height, width)) + 1) / 2
    return {"image": images, "mask": mask, "strength": args.strength}


def _labels(text: str, pipeline: Pipeline) -> Any:
    """Return numbers, or names that the model's labels have."""
    words: list[Any] = [word.strip() for word in text.split(",")]
    known = (pipeline.info or {}).get("labels") or []
    try:
        labels = [word if word in known else int(word) for word in words]
    except ValueError:
        names = f", or names: {', '.join(known[:20])}" if known else ""
        raise UserError(f"--labels {text!r}: expected whole numbers, separated by commas{names}") from None
    return labels[0] if len(labels) == 1 else labels


def _check_out(out: Path) -> None:
    """Refuse, before any work, to overwrite anything but a file of the same kind."""
    if out.suffix not in (".png", ".npz") and out.exists():
        raise UserError(f"{out} exists: give a new folder, or a .png or .npz file")
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected a file")


def _save(samples: Samples, out: Path) -> None:
    with replacing(out) as partial:
        if out.suffix == ".png":
            samples.sheet(zoom=max(1, 32 // samples.x.shape[-1])).save(partial)
        elif out.suffix == ".npz":
            import numpy as np

            labels = [value.numpy() for key, value in samples.cond.items() if key == "y"]
            np.savez(partial, samples.uint8().permute(0, 2, 3, 1).numpy(), *labels)
        else:
            partial.mkdir()
            for i, image in enumerate(samples.images):
                image.save(partial / f"{i:06d}.png")


def _save_trajectory(states: Tensor, folder: Path) -> None:
    """Write step-000.png, step-001.png, ...: a sheet of all samples [n, steps + 1, C, H, W] at each time."""
    from gen.config.images import contact_sheet, to_uint8

    with replacing(folder) as partial:
        partial.mkdir()
        for step in range(states.shape[1]):
            sheet = contact_sheet(to_uint8(states[:, step]), 10, max(1, 32 // states.shape[-1]))
            sheet.save(partial / f"step-{step:03d}.png")
