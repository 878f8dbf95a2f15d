"""Sample from a trained run.

gen sample runs/digits -n 64 --solver heun --steps 18 --guidance-scale 1.5 --seed 0 --out grid.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.config.errors import UserError

if TYPE_CHECKING:
    from gen.pipeline import Pipeline, Samples

__all__ = ["add_arguments", "add_sampler_options", "loaded", "run", "sampler_options"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or of one checkpoint")
    parser.add_argument("-n", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("--labels", help="a class, or a comma-separated class for each sample (default: balanced)")
    add_sampler_options(parser)
    parser.add_argument(
        "--autoencoder", help="decode latents: a folder of diffusers' AutoencoderKL or its like, or a JSON spec"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples.png"),
        help="file.png: one sheet; file.npz: uint8 NHWC as arr_0 and labels as arr_1; else a new folder of PNGs",
    )


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """What sample and evaluate have in common."""
    parser.add_argument("--solver", help="a name of `gen list samplers.solvers`, or a JSON spec (default: the run's)")
    parser.add_argument(
        "--steps", type=int, help="solver steps; the evaluations they take are counted (default: the run's)"
    )
    parser.add_argument("--grid", help="a name of `gen list samplers.grids`, or a JSON spec (default: the run's)")
    parser.add_argument("--guide", help="a name of `gen list samplers.guides`, or a JSON spec (default: the run's)")
    parser.add_argument("--cache", help="a name of `gen list samplers.caches`, or a JSON spec (default: the run's)")
    parser.add_argument("--guidance-scale", type=float, help='short for --guide \'{"name": "cfg", "scale": ...}\'')
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and on i alone (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, default=250, help="changes nothing but speed and memory (default: 250)"
    )
    parser.add_argument("--weights", help="the label of an average, or raw (default: the first average)")
    parser.add_argument(
        "--engine",
        help="a name of `gen list models.engines`, or a JSON spec: faster, and rounded otherwise, in bfloat16 where "
        "that is fast unless the spec has another dtype",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")


def sampler_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of add_sampler_options as Pipeline.sample takes them."""
    if args.guide and args.guidance_scale is not None:
        raise UserError("--guide and --guidance-scale are given; give one")
    guide = {"name": "cfg", "scale": args.guidance_scale} if args.guidance_scale is not None else _spec(args.guide)
    return {
        "solver": _spec(args.solver),
        "steps": args.steps,
        "grid": _spec(args.grid),
        "guide": guide,
        "cache": _spec(args.cache),
    }


def loaded(args: argparse.Namespace) -> Pipeline:
    """The pipeline that these options ask for."""
    from gen.pipeline import load_images

    pipeline = load_images(args.run, args.weights, args.device)
    return pipeline if args.engine is None else pipeline.prepared(_spec(args.engine))


def run(args: argparse.Namespace) -> int:
    _check_out(args.out)
    pipeline = loaded(args)
    labels = None if args.labels is None else _labels(args.labels)
    coder = None if args.autoencoder is None else pipeline.coder(_spec(args.autoencoder))
    made = pipeline.sample(args.n, labels, seed=args.seed, batch_size=args.batch_size, **sampler_options(args))
    if coder is not None:
        made = pipeline.decoded(made, coder)
    _save(made, args.out)
    whole = f", {sum(r.fraction for r in made.cache) / len(made.cache):.0%} of them in full" if made.cache else ""
    engine = f" ({made.engine})" if made.engine else ""
    print(f"{args.out}: {args.n} samples, {made.nfe:g} evaluations each{whole}, {made.seconds:.2f} s{engine}")
    return 0


def _spec(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{text!r} is no JSON: {error}") from None


def _labels(text: str) -> int | list[int]:
    try:
        labels = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--labels {text!r}: expected whole numbers, separated by commas") from None
    return labels[0] if len(labels) == 1 else labels


def _check_out(out: Path) -> None:
    """Before any work: nothing that exists is overwritten but a file of the same kind."""
    if out.suffix not in (".png", ".npz") and out.exists():
        raise UserError(f"{out} exists: give a new folder, or a .png or .npz file")
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected a file")


def _save(made: Samples, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        made.sheet(zoom=max(1, 32 // made.x.shape[-1])).save(out)
    elif out.suffix == ".npz":
        import numpy as np

        arrays = [made.uint8().permute(0, 2, 3, 1).numpy(), *(v.numpy() for k, v in made.cond.items() if k == "y")]
        np.savez(out, *arrays)
    else:
        out.mkdir()
        for i, image in enumerate(made.images):
            image.save(out / f"{i:06d}.png")
