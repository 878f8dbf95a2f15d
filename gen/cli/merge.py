"""Add the adapters of several runs into the weights of the model that they belong to.

gen merge runs/teacher --adapters runs/style=0.8 runs/subject --out runs/merged
gen merge runs/teacher --adapters runs/a runs/b --ties 0.2 --out runs/merged
"""

from __future__ import annotations

import argparse

from gen.cli.lib.adapters import add_adapter_options, given_adapters
from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run", help="the folder of the model that the adapters belong to")
    add_adapter_options(parser, required=True)
    add_option(parser, "out", help="the folder to write", required=True)


def run(args: argparse.Namespace) -> int:
    from gen.training.merging import merge_adapters

    given = given_adapters(args)
    folder = merge_adapters(args.run, out=args.out, **given)
    named = ", ".join(f"{name} ({factor:g})" for name, factor in given["adapters"])
    print(f"{folder}: {args.run} with the adapters of {named}")
    return 0
