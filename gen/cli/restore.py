"""Restore measured pictures by a trained model that has never seen how they were measured.

gen restore runs/digits --operator inpaint --operator.box '[2, 6, 2, 6]' --noise 0.1 --method.variance 0.5
gen restore runs/digits --operator pool --method ddnm -n 8 --each 4 --out restored.png draws 4 samples of each picture
gen restore runs/faces --operator pool --operator.factor 4 --noise 0.02 --input small/ --out restored/

Without --input, held-out pictures of the run's own data are measured here, y = A x + noise, and compared with what is
restored. Pictures of --input are measurements: of the size that the operator measures, or, where that is no picture, of
the model's size, with unknown pixels that are not looked at. A sheet has a row for each picture: as it was measured,
its samples, their deviation if there are several, and the truth if it is known.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.options import add_option, add_options, read_as, read_spec
from gen.cli.sample import own_device
from gen.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gen.operators.lib.operator import Operator
    from gen.pipeline import Pipeline

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    about = "how pictures are measured: a name of `gen list operators`, or a JSON spec; its keys as --operator.KEY"
    parser.add_argument("--operator", required=True, type=read_spec, help=about)
    about = "a name of `gen list samplers.restore`, or a JSON spec; its keys as --method.KEY (default: pigdm)"
    parser.add_argument("--method", type=read_spec, help=about)
    about = "standard deviation of the measurements' noise, pictures being in [-1, 1] (default: the method's)"
    parser.add_argument("--noise", type=read_as(float, "[0, inf)"), help=about)
    parser.add_argument(
        "--input", type=Path, help="a measured picture, or a folder of them (default: held-out data, measured here)"
    )
    parser.add_argument("--labels", help="a class, by number or name, of all (default: none)")
    parser.add_argument("--guide", type=read_spec, help="of the prediction that the method moves (default: none)")
    parser.add_argument("-n", type=read_as(int, "[1, inf)"), default=8, help="pictures (default: 8)")
    parser.add_argument("--each", type=read_as(int, "[1, inf)"), default=1, help="samples of each picture (default: 1)")
    add_options(parser, seed=0, batch_size=250, weights=None, device="cpu")
    add_option(parser, "out", Path("restored.png"), "file.png: a sheet; else a new folder of PNGs")


def run(args: argparse.Namespace) -> int:

    from gen.config.spec import build
    from gen.pipeline import load_images
    from gen.restoration import side_by_side

    if args.out.exists() and args.out.suffix != ".png":
        raise UserError(f"{args.out} exists: give a new folder, or a file.png")
    pipeline = load_images(args.run, args.weights, own_device(args.device))
    pipeline.check_pixels()
    spec: Any = build("operators", args.operator)
    operator = spec.on(tuple(pipeline.state_shape))
    method: Any = build("samplers.restore", {"name": "pigdm", **_spec(args.method)})
    noise = getattr(method, "noise", 0.0) if args.noise is None else args.noise
    truth, y = _measured(args, pipeline, operator, noise)
    told = args.noise if hasattr(method, "noise") else None  # it is the measurement's, whether or not a method asks
    made = pipeline.restore(
        y, operator, method, noise=told, cond=_label(args.labels), guide=args.guide, each=args.each,
        seed=args.seed, batch_size=args.batch_size,
    )  # fmt: skip
    samples = made.x.unflatten(0, (len(y), args.each))  # [n, each, C, H, W]
    _write(side_by_side(samples, _seen(operator, y, samples), truth)[0], samples, args.out)
    _report(samples, truth, y, operator, noise, made.nfe)
    print(args.out)
    return 0


def _measured(
    args: argparse.Namespace, pipeline: Pipeline, operator: Operator, noise: float
) -> tuple[Tensor | None, Tensor]:
    """Return the pictures if they are known, and their measurements."""
    import torch

    from gen.config.spec import build
    from gen.data.folder import Folder
    from gen.data.lib.learned import learned_data
    from gen.data.lib.pictures import read_picture
    from gen.diffusion.noise import Noise, sample_seeds

    shape = tuple(pipeline.state_shape)
    if args.input is None:
        source = learned_data(pipeline.info)
        if not source:
            raise UserError(f"{args.run} does not say what it was trained on: give pictures with --input")
        data: Any = build("data", source).open("test")
        truth = torch.stack([data[i]["x"] for i in range(min(args.n, len(data)))])
        y = operator.A(truth)
        drawn = Noise(tuple(sample_seeds(args.seed, len(truth)))).normal("measurement", operator.measured)
        return truth, y + noise * drawn
    as_pictures = len(operator.measured) == 3 and operator.measured[0] == shape[0]
    size = operator.measured if as_pictures else shape
    if args.input.is_dir():
        held = Folder(str(args.input), (size[1], size[2]), shape[0], holdout=0.0).open("train")
        pictures = torch.stack([held[i]["x"] for i in range(min(args.n, len(held)))])
    else:
        pictures = read_picture(args.input, (shape[0], size[1], size[2]))[None]
    return None, pictures if as_pictures else operator.A(pictures)


def _spec(given: Any) -> dict[str, Any]:
    return {"name": given} if isinstance(given, str) else given or {}


def _label(text: str | None) -> Any:
    return int(text) if text is not None and text.isdigit() else text


def _seen(operator: Operator, y: Tensor, samples: Tensor) -> Tensor | None:
    """Return what was measured as pictures, the smallest that fit; None where that is none."""
    found = operator.pinv(y) if operator.linear else y
    return found if found.ndim == 4 and found.shape[1] == samples.shape[2] else None


def _write(rows: Tensor, samples: Tensor, out: Path) -> None:
    """Write a sheet of rows [n, columns, C, H, W], or every sample to a folder."""
    from gen.config.images import contact_sheet, to_pil, to_uint8

    if out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(to_uint8(rows.flatten(0, 1)), rows.shape[1], zoom=max(1, 64 // rows.shape[-1])).save(out)
        return
    out.mkdir(parents=True)
    for i, of_one in enumerate(samples):
        for k, image in enumerate(of_one):
            to_pil(to_uint8(image)).save(out / (f"{i:06d}-{k}.png" if samples.shape[1] > 1 else f"{i:06d}.png"))


def _report(samples: Tensor, truth: Tensor | None, y: Tensor, operator: Operator, noise: float, nfe: float) -> None:
    """Print how far samples are from the truth and from what was measured."""
    each = samples.shape[1]
    gap = (operator.A(samples.flatten(0, 1)) - y.repeat_interleave(each, 0)).square().mean().sqrt()
    unit = f", {gap / noise:.2f} of the noise's deviation (1 is what the truth has)" if noise else ""
    print(f"{nfe:g} network evaluations per sample; distance to the measurement {gap:.4f}{unit}")
    if truth is None:
        return
    parts = {"a sample": samples, **({f"the mean of {each}": samples.mean(1, keepdim=True)} if each > 1 else {})}
    for name, part in parts.items():
        wrong = ((part.clamp(-1, 1) - truth[:, None]) / 2).square().mean((2, 3, 4))
        print(f"PSNR of {name}: {float(-10 * wrong.log10().mean()):.2f} dB")
