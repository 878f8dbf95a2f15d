"""List the plug-ins of all folders or of some, or explain one: gen list, gen list solvers, gen list heun.

A folder is a registry: a new file in it appears here, and its file name is its name in recipes and options. Names in
square brackets are a model's presets, which are names too: --model dit-b/2. A class of your own is explained by its
name, gen list my_module:MyClass.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import shutil
import textwrap

from gen.config.errors import UserError, nearest

__all__ = ["FOLDERS", "add_arguments", "explain", "run"]

# The folders and modules whose names a spec may use, in the order one meets them.
FOLDERS = (
    "training.recipes",
    "training.published",
    "data",
    "models",
    "models.layers.mixers",
    "models.autoencoders",
    "models.discriminators",
    "models.encoders",
    "models.text_encoders",
    "models.engines",
    "models.interop.public",
    "models.interop.text",
    "text.tokenizers",
    "diffusion.path",
    "text.mask_path",
    "diffusion.parameterisation",
    "diffusion.times",
    "diffusion.weighting",
    "diffusion.decomposition",
    "operators",
    "training.objectives",
    "distillers",
    "distillers.rewards",
    "distillers.distances",
    "training.optim",
    "training.outer",
    "training.schedules",
    "training.ema",
    "training.tuning",
    "samplers.solvers",
    "samplers.grids",
    "samplers.guides",
    "samplers.restore",
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
    "eval.perceptual",
    "eval.parallelbench",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help=f"plug-ins, or folders: {', '.join(FOLDERS)} (default: all folders)")
    parser.add_argument("--json", action="store_true", help="print {folder: {name: text}} instead")


def run(args: argparse.Namespace) -> int:
    from gen.config.spec import find

    width = shutil.get_terminal_size((120, 24)).columns
    table: dict[str, dict[str, str]] = {}
    for folder, name in [choice for given in args.name or FOLDERS for choice in _chosen(given)]:
        if name is not None:
            text = explain(find(name, folder))
            table.setdefault(folder, {})[name] = text
            if not args.json:
                print(f"{name if ':' in name else f'{folder}.{name}'}\n{textwrap.indent(text, '  ')}")
            continue
        lines = _lines(folder)
        table.setdefault(folder, {}).update({name: text for name, (text, _) in lines.items()})
        if args.json or not (lines or args.name):
            continue
        column = max(map(len, lines), default=0)
        rows = [
            (name, f"{text} [{', '.join(presets)}]" if presets else text) for name, (text, presets) in lines.items()
        ]
        wrapper = textwrap.TextWrapper(max(width, column + 44), break_on_hyphens=False, break_long_words=False)
        wrapper.subsequent_indent = " " * (column + 4)
        print(folder, *(wrapper.fill(f"  {name:<{column}}  {text}") for name, text in rows), sep="\n")
    if args.json:
        print(json.dumps(table, indent=2))
    return 0


def _lines(folder: str) -> dict[str, tuple[str, list[str]]]:
    """Return the first paragraph and the presets of each plug-in by name, as its source has them if it does."""
    from gen.config.sources import definitions
    from gen.config.spec import describe, find, first_paragraph, preset_names

    lines = {}
    for name, source in definitions(folder).items():
        if source is not None and source.doc is not None and (presets := source.preset_names) is not None:
            lines[name] = first_paragraph(source.doc), presets
        else:  # inherited, or made elsewhere: the class itself has it
            plugin = find(name, folder)
            lines[name] = describe(plugin), preset_names(plugin)
    return lines


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
        hint = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        kind = f"a name or spec of {' or '.join(folders)}" if folders else hint
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        rows.append(f"    {field.name}: {kind}" + ("" if default is dataclasses.MISSING else f" = {default!r}"))
    return "\n".join(rows)


def _chosen(given: str) -> list[tuple[str, str | None]]:
    """Return folders and in each None, for a line of every plug-in, or the name of one of which everything is shown.

    A folder goes by its last words: "solvers" and "samplers/solvers" are samplers.solvers.
    """
    from gen.config.spec import names

    if ":" in given:  # of the user's own
        return [(given.partition(":")[0], given)]
    word = given.strip("/").replace("/", ".").replace("-", "_")
    ends = [folder for folder in FOLDERS if f".{folder}".endswith(f".{word}")][:1]
    head, _, name = word.rpartition(".")
    owners = [f for f in FOLDERS if f".{f}".endswith(f".{head}" if head else "") and name in names(f)]
    if not owners and not ends:
        near = FOLDERS if head else [*FOLDERS, *(one for folder in FOLDERS for one in names(folder))]
        hint, _, _ = nearest(word, near).partition("Allowed")
        raise UserError(
            f"there are no plug-ins in {given!r}, and none has this name. {hint}Folders: {', '.join(FOLDERS)}"
        )
    return [*((folder, None) for folder in ends), *((folder, name) for folder in owners)]
