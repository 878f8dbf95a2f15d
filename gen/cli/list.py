"""List the plug-ins of all folders or of some, or explain one: gen list, gen list solvers, gen list heun.

A folder is a registry: a new file in it appears here, and its file name is its name in recipes and options. Names in
square brackets are a model's presets, which are names too: --model dit-b/2.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable

from gen.config.errors import UserError, nearest

__all__ = ["FOLDERS", "add_arguments", "explain", "run"]

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
    parser.add_argument("name", nargs="*", help=f"plug-ins, or folders: {', '.join(FOLDERS)} (default: all folders)")
    parser.add_argument("--json", action="store_true", help="print {folder: {name: text}} instead")


def run(args: argparse.Namespace) -> int:
    from gen.config.spec import find, preset_names

    width = shutil.get_terminal_size((120, 24)).columns
    table: dict[str, dict[str, str]] = {}
    for folder, plugins, text_of in [choice for given in args.name or FOLDERS for choice in _chosen(given)]:
        texts = {name: text_of(find(name, folder)) for name in plugins}
        table.setdefault(folder, {}).update(texts)
        if args.json or not (texts or args.name):
            continue
        if text_of is explain:
            print(*(f"{folder}.{name}\n{textwrap.indent(text, '  ')}" for name, text in texts.items()), sep="\n")
            continue
        column = max(map(len, texts), default=0)
        presets = {name: ", ".join(preset_names(find(name, folder))) for name in texts}
        rows = [(name, f"{text} [{presets[name]}]" if presets[name] else text) for name, text in texts.items()]
        wrapper = textwrap.TextWrapper(max(width, column + 44), break_on_hyphens=False, break_long_words=False)
        wrapper.subsequent_indent = " " * (column + 4)
        lines = (wrapper.fill(f"  {name:<{column}}  {text}") for name, text in rows)
        print(folder, *lines, sep="\n")
    if args.json:
        print(json.dumps(table, indent=2))
    return 0


def explain(plugin: object) -> str:
    """Return the docstring of a plug-in, the names of its presets and, for a dataclass, its fields with defaults.

    Args:
        plugin: a class, or a recipe's function.
    """
    fields = [field for field in dataclasses.fields(plugin) if field.init] if dataclasses.is_dataclass(plugin) else []
    from gen.config.spec import preset_names

    presets = textwrap.wrap(", ".join(preset_names(plugin)), 110, break_on_hyphens=False)
    rows = [inspect.getdoc(plugin) or "", *(["\nPresets, each a name of its own:"] if presets else [])]
    rows += [f"    {line}" for line in presets] + (["\nFields:"] if fields else [])
    for field in fields:
        folders = field.metadata.get("folders")
        kind = f"a name or spec of {' or '.join(folders)}" if folders else field.type
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        rows.append(f"    {field.name}: {kind}" + ("" if default is dataclasses.MISSING else f" = {default!r}"))
    return "\n".join(rows)


def _chosen(given: str) -> list[tuple[str, list[str], Callable[[object], str]]]:
    """Return folders, names in them and how to show each: a line for all of a folder, everything for one plug-in.

    A folder goes by its last words: "solvers" and "samplers/solvers" are samplers.solvers.
    """
    from gen.config.spec import describe, names

    word = given.strip("/").replace("/", ".").replace("-", "_")
    if ends := [folder for folder in FOLDERS if f".{folder}".endswith(f".{word}")]:
        return [(ends[0], names(ends[0]), describe)]
    head, _, name = word.rpartition(".")
    owners = [f for f in FOLDERS if f".{f}".endswith(f".{head}" if head else "") and name in names(f)]
    if not owners:
        raise UserError(f"there are no plug-ins in {given!r}, and none has this name. {nearest(word, FOLDERS)}")
    return [(folder, [name], explain) for folder in owners]
