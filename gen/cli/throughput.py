"""Measure images per second, latency, memory, evaluations and FLOPs at several batch sizes, in one table.

gen throughput runs/digits --steps 8 --batch-sizes 1,16,64
gen throughput path/to/a/diffusers/pipeline --steps 50 --prompt "a cat"
gen throughput my_package.my_module:sample

The last is a function (or a class whose object is one) that is called with the number of images to make. GFLOP counts
the matrix products, convolutions and attentions that torch runs for an image, two operations for each multiplication;
kernels of others are not counted. J/image needs an NVIDIA GPU and the package nvidia-ml-py. On a CPU the peak is that
of the whole process so far.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gen.cli.lib.options import add_option, read_as, set_threads
from gen.cli.sample import add_sampler_options
from gen.config.errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a run, a folder of a diffusers pipeline, or MODULE:FUNCTION")
    parser.add_argument("--batch-sizes", default="1,4,16", help="images in a call, comma-separated (default: 1,4,16)")
    seconds = "longest time for a batch size, once five calls were timed (default: 3)"
    parser.add_argument("--seconds", type=read_as(float, "(0, inf)"), default=3.0, help=seconds)
    parser.add_argument("--prompt", default="a photograph", help="of a pipeline that takes one")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_option(parser, "out", help="a .json file to write, too")
    add_option(parser, "threads")
    add_sampler_options(parser)


def run(args: argparse.Namespace) -> int:
    set_threads(args.threads)
    from gen.cli.lib.workloads import workload
    from gen.config.spec import spec_of
    from gen.config.writing import write_json
    from gen.eval.speed_table import measure_speed, speed_text
    from gen.eval.throughput import Throughput

    sizes = args.batch_sizes.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise UserError(f"--batch-sizes {args.batch_sizes!r}; allowed: whole numbers, separated by commas")
    table = measure_speed(workload(args), list(map(int, sizes)), Throughput(seconds=args.seconds))
    spec = spec_of(table, named=False)
    if args.out is not None:
        write_json(Path(args.out), spec)
    print(json.dumps(spec, indent=2) if args.json else speed_text(table))
    return 0
