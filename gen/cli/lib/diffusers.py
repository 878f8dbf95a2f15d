"""Folders of diffusers' pipelines where verbs take a run."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from gen.cli.lib.options import read_spec
from gen.config.errors import UserError

if TYPE_CHECKING:
    from gen.models.interop.pipelines.prompted import PromptPipeline

__all__ = ["add_call_option", "is_pipeline", "prompted"]


def add_call_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of a pipeline's own arguments.

    Args:
        parser: of a verb that samples.
    """
    about = "of a pipeline of diffusers: arguments of its call, as JSON or as --call.KEY, such as --call.num_frames 17"
    parser.add_argument("--call", type=read_spec, help=about)
    about = "of a pipeline of diffusers: a folder that conditions of prompts are kept in, each encoded once"
    parser.add_argument("--store", help=about)


def is_pipeline(args: argparse.Namespace) -> bool:
    """Return whether a verb is given a folder of diffusers' pipeline.

    Args:
        args: the verb's, parsed.
    """
    if (args.run / "model_index.json").is_file():
        return True
    if given := [f"--{key}" for key in ("call", "store") if getattr(args, key, None) is not None]:
        raise UserError(f"{given[0]} is for pipelines of diffusers, and {args.run} is none")
    return False


def prompted(args: argparse.Namespace, device: str) -> PromptPipeline:
    """Load a pipeline of diffusers as the options of a verb say.

    Args:
        args: the verb's, parsed.
        device: to load it on.
    """
    from gen.data.lib.pictures import read_size
    from gen.models.interop.pipelines.prompted import load_diffusers

    others = ("weights", "text_encoder", "autoencoder", "trajectory", "watch")
    if given := [name.replace("_", "-") for name in others if getattr(args, name, None) is not None]:
        raise UserError(f"{args.run} is a pipeline of diffusers: leave out --{', --'.join(given)}")
    call = {key: _value(value) for key, value in (args.call or {}).items()} if isinstance(args.call, dict) else None
    if call is None and args.call is not None:
        raise UserError(f"--call {args.call}: give JSON, or --call.KEY VALUE")
    call = call or {}
    if (size := getattr(args, "size", None)) is not None:
        pair = read_size(size, "--size")
        call["height"], call["width"] = pair if isinstance(pair, tuple) else (pair, pair)
    loaded = load_diffusers(args.run, device=device, dtype=args.dtype, store=args.store, **call)
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


def _value(text: Any) -> Any:
    """Return the JSON value of a text, or the text."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text
