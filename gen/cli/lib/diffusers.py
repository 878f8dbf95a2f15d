"""Folders of diffusers' pipelines where verbs take a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.adapters import given_adapters
from gen.cli.lib.options import read_spec
from gen.config.errors import UserError
from gen.config.reading import read_lines

if TYPE_CHECKING:
    from gen.models.interop.pipelines.prompted import PromptPipeline

PIPELINES_OWN = {  # options that are for pipelines of diffusers alone, by the attribute that may be one
    "run": ("call", "store"),
    "teacher": ("call", "store", "dtype"),
    "recipe": ("call", "store", "dtype", "prompts"),
}

__all__ = ["add_call_option", "add_teacher_options", "is_pipeline", "loaded_teacher", "prompted"]


def add_call_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of a pipeline's own arguments.

    Args:
        parser: of a verb that samples.
    """
    about = "of a pipeline of diffusers: arguments of its call, as JSON or as --call.KEY, such as --call.num_frames 17"
    parser.add_argument("--call", type=read_spec, help=about)
    about = "of a pipeline of diffusers: a folder that conditions of prompts are kept in, each encoded once"
    parser.add_argument("--store", help=about)


def add_teacher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a pipeline that students learn from.

    Args:
        parser: of a verb that trains or makes pairs.
    """
    about = "of a pipeline of diffusers: a text file with a prompt a line, which it is sampled by in turn"
    parser.add_argument("--prompts", type=Path, help=about)
    about = "of a pipeline of diffusers: of its weights, such as bfloat16 (default: float32)"
    parser.add_argument("--dtype", help=about)
    add_call_option(parser)


def is_pipeline(args: argparse.Namespace, name: str = "run") -> bool:
    """Return whether a verb is given a folder of diffusers' pipeline.

    Args:
        args: the verb's, parsed.
        name: of its attribute that may be one.
    """
    folder = Path(getattr(args, name))
    if (folder / "model_index.json").is_file():
        return True
    if given := [f"--{key}" for key in PIPELINES_OWN[name] if getattr(args, key, None) is not None]:
        raise UserError(f"{given[0]} is for pipelines of diffusers, and {folder} is none")
    return False


def loaded_teacher(args: argparse.Namespace, folder: Path, device: str) -> PromptPipeline:
    """Load a pipeline of diffusers that is learned from, as the options of `add_teacher_options` say.

    Args:
        args: the verb's, parsed.
        folder: of the pipeline.
        device: to load it on.

    Raises:
        UserError: for an empty file of prompts.
    """
    from gen.models.interop.pipelines.prompted import load_diffusers

    prompts = [] if args.prompts is None else list(read_lines(args.prompts))
    if args.prompts is not None and not prompts:
        raise UserError(f"{args.prompts} is empty: give a prompt a line")
    return load_diffusers(folder, device=device, dtype=args.dtype, store=args.store, prompts=prompts, **_call(args))


def prompted(args: argparse.Namespace, device: str) -> PromptPipeline:
    """Load a pipeline of diffusers as the options of a verb say.

    Args:
        args: the verb's, parsed.
        device: to load it on.
    """
    from gen.data.lib.pictures import read_size
    from gen.models.interop.pipelines.prompted import load_diffusers
    from gen.models.interop.pipelines.students import load_adapters

    others = ("weights", "text_encoder", "autoencoder", "trajectory", "watch")
    if given := [name.replace("_", "-") for name in others if getattr(args, name, None) is not None]:
        raise UserError(f"{args.run} is a pipeline of diffusers: leave out --{', --'.join(given)}")
    call = _call(args)
    if (size := getattr(args, "size", None)) is not None:
        pair = read_size(size, "--size")
        call["height"], call["width"] = pair if isinstance(pair, tuple) else (pair, pair)
    adapters = given_adapters(args)
    if adapters.get("ties") is not None:
        raise UserError(f"{args.run} is a pipeline of diffusers, which adds adapters up: leave out --ties")
    loaded = load_diffusers(args.run, device=device, dtype=args.dtype, store=args.store, **call)
    load_adapters(loaded.pipe, adapters.get("adapters", ()))
    negative = getattr(args, "negative", None) if loaded.takes_prompts else None  # else it is a label
    loaded = loaded if negative is None else loaded.with_call(negative_prompt=negative)
    if not loaded.takes_prompts and not loaded.takes_labels:
        raise UserError(f"{args.run} has embeddings or labels in its call: sample it in Python, by gen.load_diffusers")
    wrong = ("labels",) if loaded.takes_prompts else ("prompt", "prompts")
    if given := [name for name in wrong if getattr(args, name, None) is not None]:
        takes = "prompts" if loaded.takes_prompts else "labels"
        raise UserError(f"{args.run} takes {takes}: leave out --{given[0]}")
    if args.engine is not None:
        loaded = loaded.prepared(args.engine)
    guide = "cfg" if args.guidance_scale is not None else args.guide
    loaded = loaded.guided(guide, negative)
    if args.steps is not None and args.solver is None and args.grid is None:
        loaded.warn_of_other_rules(args.steps)
    scale = args.guidance_scale
    if scale is not None and scale != 1 and not any(key.startswith("null.") for key in loaded.heard.cond):
        raise UserError(
            f"--guidance-scale: {type(loaded.pipe).__name__} makes no prediction without the prompt. A scale that its "
            f"network takes is --call.guidance_scale {scale:g}; with --negative TEXT there are two to guide by"
        )
    return loaded


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that are given."""
    if args.call is not None and not isinstance(args.call, dict):
        raise UserError(f"--call {args.call}: give JSON, or --call.KEY VALUE")
    return {key: _value(value) for key, value in (args.call or {}).items()}


def _value(text: Any) -> Any:
    """Return the JSON value of a text, or the text."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text
