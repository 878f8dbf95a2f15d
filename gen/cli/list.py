"""List the plug-ins of every folder, or of those named, with one line on each.

A folder is a registry: a new file in it appears here, and its file name is what recipes and options call it.
"""

from __future__ import annotations

import argparse
import json
import shutil

from gen.config.errors import UserError, nearest

__all__ = ["FOLDERS", "add_arguments", "run"]

# The folders and modules whose names a spec may use, in the order one meets them.
FOLDERS = (
    "training.recipes",
    "data",
    "models",
    "models.autoencoders",
    "models.encoders",
    "models.engines",
    "models.interop.public",
    "models.interop.text",
    "text.tokenizers",
    "diffusion.path",
    "text.mask_path",
    "diffusion.parameterisation",
    "diffusion.times",
    "diffusion.weighting",
    "training.objectives",
    "distillers",
    "distillers.rewards",
    "distillers.distances",
    "training.optim",
    "training.schedules",
    "training.ema",
    "samplers.solvers",
    "samplers.grids",
    "samplers.guides",
    "samplers.caches",
    "samplers.caches.policies",
    "samplers.caches.predictors",
    "samplers.caches.coordinates",
    "samplers.decoding_policies",
    "samplers.block_schedules",
    "samplers.kv_plans",
    "samplers.stopping_rules",
    "samplers.search",
    "eval.features",
    "eval.metrics",
    "eval.parallelbench",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="*", help=f"one or more of: {', '.join(FOLDERS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print {folder: {name: line}} instead")


def run(args: argparse.Namespace) -> int:
    chosen = [_folder(given) for given in args.folder] or FOLDERS
    table = {folder: _lines(folder) for folder in chosen}
    if args.json:
        print(json.dumps(table, indent=2))
        return 0
    width = shutil.get_terminal_size((120, 24)).columns
    for folder, lines in table.items():
        if not lines and not args.folder:
            continue
        print(folder)
        column = max((len(name) for name in lines), default=0)
        for name, line in lines.items():
            text = f"  {name:<{column}}  {line}"
            print(text if len(text) <= width else text[: width - 1] + "…")
    return 0


def _folder(given: str) -> str:
    """The folder one means: "solvers" and "samplers/solvers" are samplers.solvers."""
    name = given.strip("/").replace("/", ".").replace("-", "_")
    ends = [folder for folder in FOLDERS if folder == name or folder.endswith(f".{name}")]
    if not ends:
        raise UserError(f"there are no plug-ins in {given!r}. {nearest(name, FOLDERS)}")
    return ends[0]


def _lines(folder: str) -> dict[str, str]:
    from gen.config.spec import describe, find, names

    return {name: describe(find(name, folder)) for name in names(folder)}
