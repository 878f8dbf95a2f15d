"""Bound a text model's perplexity on held-out text, and let another model judge what is generated.

gen perplexity runs/text -n 200; with --judge FOLDER, a causal language model of transformers, also the generative
perplexity of texts that the run writes. gen perplexity texts.jsonl --judge FOLDER judges texts of any tool.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.options import add_option, add_options, read_as
from gen.config.errors import UserError
from gen.config.spec import Json

if TYPE_CHECKING:
    from gen.eval.perplexity import JudgedTexts, PerplexityBound
    from gen.text.pipeline import TextPipeline

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run", help="a text run or a checkpoint; or texts: a file, .txt or .jsonl, or a folder of them")
    parser.add_argument("--texts", help="what the run is scored on: texts as above (default: its own held-out data)")
    parser.add_argument("--split", default="test", help="of the run's own data: train or test (default: test)")
    add_option(parser, "n", help="texts, at most (default: 200 of a run; all of a file)")
    parser.add_argument(
        "--masks",
        type=read_as(int, "[2, inf)"),
        default=32,
        help="of each block, an even number (default: 32)",
    )
    parser.add_argument("--judge", type=Path, help="folder of a causal language model with its tokenizer")
    parser.add_argument("--gen-length", type=int, help="tokens of a judged text of the run, at most (default: 64)")
    add_options(parser, seed=0, batch_size=64, weights=None, device="cpu")
    add_option(parser, "out", help="a .json file with the numbers")


def run(args: argparse.Namespace) -> int:
    from gen.config.writing import write_text
    from gen.eval.image_sets import is_run
    from gen.pipeline import load
    from gen.text.pipeline import TextPipeline

    numbers: Json = {}
    if is_run(args.run):
        pipeline = load(args.run, args.weights, args.device)
        if not isinstance(pipeline, TextPipeline):
            raise UserError(f"{args.run} makes no text: see gen evaluate --help")
        bound = _bound(pipeline, args)
        numbers["bound"] = {**asdict(bound), "perplexity": asdict(bound.perplexity)}
        print(_bound_line(pipeline.name, bound))
        texts = _written(pipeline, args) if args.judge else []
    else:
        if args.judge is None or args.texts is not None:
            raise UserError(f"{args.run} is no run: give --judge FOLDER to have its texts judged, and no --texts")
        texts = _texts(args.run)[: args.n]
    if args.judge is not None:
        from gen.eval.perplexity import judge_texts

        judged = judge_texts(texts, args.judge, batch_size=args.batch_size, device=args.device)
        numbers["judged"] = {**asdict(judged), "perplexity": asdict(judged.perplexity)}
        print(_judged_line(judged))
    if args.out is not None:
        write_text(args.out, json.dumps(numbers, indent=1) + "\n")
    return 0


def _bound(pipeline: TextPipeline, args: argparse.Namespace) -> PerplexityBound:
    """Return the bound of a run on its own data, or on texts."""
    from gen.eval.perplexity import perplexity_bound

    items = _items(pipeline, args)
    count = min(len(items), args.n or 200)
    if count < (args.n or 0):
        print(f"-n {args.n}: there are {count} texts")
    chosen = [items[i * len(items) // count] for i in range(count)]  # spread evenly
    return perplexity_bound(pipeline.net, chosen, samples=args.masks, seed=args.seed, batch_size=args.batch_size)


def _items(pipeline: TextPipeline, args: argparse.Namespace) -> Any:
    """Return the items that are scored, a map-style data set: windows of texts, or the run's own data."""
    from gen.data.text import Text

    if args.texts is None:
        if pipeline.data is None:
            raise UserError(f"{args.run} does not say what it was trained on: give --texts FILE")
        return getattr(pipeline.data, "whole", pipeline.data).open(args.split)
    if pipeline.tokenizer is None:
        raise UserError(f"{args.run} has no tokenizer, so it is not scored on --texts")
    length = pipeline.length or 1024
    return Text(args.texts, pipeline.tokenizer, length, holdout=0.0).open("train")


def _written(pipeline: TextPipeline, args: argparse.Namespace) -> list[str]:
    """Return texts that a run writes after nothing."""
    if pipeline.tokenizer is None:
        raise UserError(f"{args.run} has no tokenizer, and a judge reads text")
    count = args.n or 200
    return pipeline.generate(
        [""] * count, args.gen_length, seed=args.seed, batch_size=args.batch_size, temperature=1.0
    ).texts


def _texts(path: Path) -> list[str]:
    """Return the texts of a file or a folder; of a pair or a chat, the response."""
    from gen.data.text import Text

    return [row.written for _, row in Text(str(path)).rows()]


def _bound_line(name: str, bound: PerplexityBound) -> str:
    masks = f"{bound.samples} masks of each block (Monte Carlo error {bound.monte_carlo:.2g})"
    return (
        f"{name}: at most {bound.nats.text()} nats ({bound.bits.text()} bits) per token, perplexity at most "
        f"{bound.perplexity.text()}; {bound.texts:,} texts of {bound.tokens:,} tokens, {masks}"
    )


def _judged_line(judged: JudgedTexts) -> str:
    return (
        f"judged by {judged.judge} in {judged.tokens:,} tokens of its own {judged.tokenizer}: generative perplexity "
        f"{judged.perplexity.text()}, entropy {judged.entropy.text()} nats; {judged.texts:,} texts"
    )
