"""Write reference statistics, means and covariances of the features of real images, which pytorch-fid reads too.

gen statistics pictures/ --extractor efficientnet_lite0 --out ref.npz; then gen evaluate SAMPLES --against ref.npz.
The file also says by which extractor, and of how many pictures; spatial moments (sFID) are in it where the extractor
has spatial features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.cli.evaluate import add_feature_options, features_folder, keeping_features
from gen.cli.lib.options import add_option, parse_spec
from gen.cli.sample import own_device
from gen.config.errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a name of `gen list data` or a JSON spec, or a folder, zip or file of pictures")
    parser.add_argument("--split", help="of a data set: train, test, or all of it (default: train)")
    add_feature_options(parser)
    add_option(parser, "batch_size", 250)
    add_option(parser, "device", "cpu")
    add_option(parser, "out", Path("ref.npz"), "the .npz file to write")


def run(args: argparse.Namespace) -> int:
    from gen.config.devices import check_device
    from gen.eval.extraction import Extraction, capabilities
    from gen.eval.metrics.lib.moments import Moments
    from gen.eval.reference import Reference, is_data
    from gen.eval.statistics import write_statistics
    from gen.training.distributed import is_main

    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: expected a file .npz")
    check_device(args.device)
    how = Extraction(features_folder(args.features), args.batch_size, own_device(args.device), quiet=False)
    data = parse_spec(args.data)
    split = args.split or ("train" if is_data(data) else None)
    reference = Reference.open(data, split, args.extractor, how)
    real = reference.real
    if real is None:
        raise UserError(f"{args.data} holds statistics already")
    if len(real) < 2:
        raise UserError(f"{args.data} holds one picture, which has no covariance")
    kinds = [name for name in ("features", "spatial") if name in capabilities(reference.extractor)]
    with keeping_features(features_folder(args.features)):
        real.fill(kinds)
    if not is_main():
        return 0
    rows = {kind: real.rows(kind) for kind in kinds}
    moments = {str(kind): Moments.of_rows(values) for kind, values in rows.items() if values is not None}
    write_statistics(args.out, moments, {
        "extractor": {"name": reference.extractor.name, "sha256": reference.extractor.sha256},
        "n": len(real),
        "shape": list(real.images.shape),
        "fingerprint": real.fingerprint,
        "data": reference.data,
    })  # fmt: skip
    print(f"{args.out}: {reference.extractor.name}, {len(real)} pictures, {', '.join(kinds)}")
    return 0
