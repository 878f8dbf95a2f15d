"""Measure the quality of samples against real images: of a trained run, whose speed is measured too, or of any tool.

gen evaluate runs/digits --steps 8 --solver euler -n 1000; the record is written to runs/digits/eval/.
gen evaluate samples.npz --against VIRTUAL_imagenet256_labeled.npz --protocol adm-imagenet256 --extractor
inception --extractor.path pt_inception-2015-12-05-6726825d.pth; the record is written to samples.npz.eval/.

Features are kept (--features): what was killed goes on where it was, and another metric needs no second pass. Several
processes share out the work: torchrun --nproc-per-node 4 -m gen evaluate ..., or the same command with --part 1/4 to
--part 4/4, and then without.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gen.cli.lib.adapters import add_adapter_options
from gen.cli.lib.diffusers import is_pipeline
from gen.cli.lib.options import add_option, parse_part, read_as, read_spec
from gen.cli.sample import (
    add_autoencoder_option,
    add_sampler_options,
    add_size_option,
    loaded,
    own_device,
    refuse_sampler_options,
    sampler_options,
)
from gen.config.errors import UserError
from gen.config.machine import cache_folder
from gen.config.reading import parse_json
from gen.config.spec import Json

__all__ = ["add_arguments", "add_feature_options", "features_folder", "keeping_features", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    run = "a run or a checkpoint; or samples: a folder or a zip of pictures, .npz (ADM), .npy or .safetensors"
    add_option(parser, "run", help=run)
    add_option(parser, "n", help="number of samples (default: 1000 of a run; all there are)")
    parser.add_argument(
        "--against",
        type=read_spec,
        help="the real images: a name of `gen list data` or a JSON spec, pictures as samples are given, or statistics "
        "(mu, sigma) (default: the run's own data)",
    )
    parser.add_argument("--split", help="of a data set: train, test, or all of it (default: test)")
    add_feature_options(parser)
    parser.add_argument("--reference-extractor", help="by which statistics were computed that do not say it themselves")
    parser.add_argument(
        "--metrics",
        help='names of `gen list eval.metrics` or of your own, "fid,my_package.my_module:Mine", or a JSON list of '
        "specs; the first ranks a leaderboard (default: all that can be computed)",
    )
    parser.add_argument("--protocol", help="a published one, which sets extractor, n and metrics: adm-imagenet256 ...")
    parser.add_argument("--class-wise", action="store_true", help="metrics of single classes too")
    training = "images that the model may have memorised, as --against (default: the run's)"
    parser.add_argument("--training", type=read_spec, help=training)
    parser.add_argument("--paired", help="pictures that sample i should be, for PSNR, SSIM and LPIPS")
    measured = (
        "what sample i is restored from, for its consistency: an .npy file or pictures (default: what a run sees)"
    )
    parser.add_argument("--measured", help=measured)
    each = "samples of each degraded picture of a run that restores, or of each of --paired (default: 1)"
    parser.add_argument("--each", type=read_as(int, "[1, 100000]"), default=1, help=each)
    parser.add_argument(
        "--prompts",
        help="a text file: of a run that takes captions, those of its samples, a line each (default: the held-out "
        "data's); of samples that are there a line for each, for the CLIP score",
    )
    parser.add_argument("--allow-lossy", action="store_true", help="take JPEG and lossy WebP samples")
    parser.add_argument("--label", help="what the leaderboard calls the row (default: the run's name)")
    parser.add_argument("--part", help="k/n: compute the features of part k of n, and no more")
    parser.add_argument("--json", action="store_true", help="print the whole record")
    add_option(parser, "out", help="folder of the record (default: RUN/eval, SAMPLES.eval)")
    add_sampler_options(parser)
    add_size_option(parser)
    add_autoencoder_option(parser)
    add_adapter_options(parser)


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of features, which evaluate and statistics have in common.

    Args:
        parser: of the verb.
    """
    extractor = "of `gen list eval.features`, or a JSON spec (default: digits_cnn for images of 8 x 8, else pixels)"
    parser.add_argument("--extractor", type=read_spec, help=extractor)
    parser.add_argument(
        "--features", type=Path, help="folder that features are kept in (default: ~/.cache/gen/features)"
    )


def features_folder(given: Path | None) -> Path:
    """Return the folder that features are kept in, under the user's cache by default.

    Args:
        given: by --features.
    """
    return given or cache_folder("features")


@contextmanager
def keeping_features(features: Path) -> Iterator[None]:
    """Say, after SIGTERM or Ctrl-C, that the features computed so far are kept.

    Args:
        features: folder of them.
    """
    from gen.training.signals import resumable

    with resumable(f"interrupted; the features computed so far are kept in {features}: the same command goes on"):
        yield


def run(args: argparse.Namespace) -> int:
    with keeping_features(features_folder(args.features)):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from gen import evaluate
    from gen.eval.evaluate import extract_part
    from gen.eval.image_sets import is_run
    from gen.eval.record import record_folder, to_json
    from gen.training.distributed import is_main

    drawn = is_run(args.run)
    if drawn and args.size is not None and not is_pipeline(args):
        raise UserError("--size is for pipelines of diffusers: a run is judged at its own size")
    if drawn and args.adapters and is_pipeline(args):
        raise UserError("--adapters are of runs here: gen sample takes those of a pipeline, and its samples are judged")
    samples = loaded(args) if drawn else args.run
    sampler = sampler_options(args, samples) if drawn else _no_sampler(args)
    options: Json = {
        "metrics": _metrics(args.metrics),
        "out": args.out or record_folder(args.run),
        "features": features_folder(args.features),
        "device": None if drawn else own_device(args.device),
        "quiet": False,
        **{key: getattr(args, key) for key in ("against", "extractor", "training", "autoencoder")},
        **{key: getattr(args, key) for key in ("split", "n", "seed", "label", "batch_size", "protocol", "paired")},
        **{
            key: getattr(args, key)
            for key in ("class_wise", "prompts", "measured", "each", "allow_lossy", "reference_extractor")
        },
        **sampler,
    }
    if args.part is not None:
        extract_part(parse_part(args.part), samples=samples, **options)
        print(f"part {args.part} is done; when all are: the same command without --part")
        return 0
    record = evaluate(samples, **options)
    if not is_main():
        return 0
    if args.json:
        print(json.dumps(to_json(record), indent=2))
        return 0
    numbers = "; ".join(f"{m.column.heading} {m.column.text(m.estimate)}" for m in record.metrics)
    how = f"{record.n} samples" if record.nfe is None else f"{record.nfe:g} evaluations per sample"
    print(f"{record.label}: {how}, features {record.extractor.name}; {numbers}")
    print(f"recorded in {options['out']}")
    if record.reference.assumed:
        print(f"{record.reference.data['name']}: {record.reference.assumed}")
    return 0


def _no_sampler(args: argparse.Namespace) -> Json:
    """Return the sampler's options for samples that are there: none may be given."""
    if not args.run.exists():
        raise UserError(f"{args.run} does not exist: give a run, or a folder or a file of pictures")
    refuse_sampler_options(args, f"{args.run} is no run, its samples are there")
    return {}


def _metrics(text: str | None) -> list[str | Json] | None:
    """Return the names or specs that an option holds."""
    if text is None or not text.lstrip().startswith("["):
        return None if text is None else [name.strip() for name in text.split(",")]
    return list(parse_json(text, f"--metrics {text!r}"))
