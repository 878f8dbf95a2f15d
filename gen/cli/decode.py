"""Let a text model write after a prompt.

gen decode runs/text --prompt "The with statement" --gen-length 64 --block-length 16 --policy threshold --threshold .9
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.adapters import add_adapter_options, given_adapters
from gen.cli.lib.options import add_option, add_options, parse_spec, read_as, read_spec
from gen.cli.lib.terminal import exact_output
from gen.config.errors import UserError
from gen.config.reading import parse_json, read_lines

if TYPE_CHECKING:
    from gen.text.decoding import Decoding
    from gen.text.gaps import Gap
    from gen.text.pipeline import GeneratedTexts, TextPipeline

__all__ = ["add_arguments", "add_decoding_options", "run", "settings"]

MEMORY = 'of a model that does not fit, what each device may hold: {"0": "20GiB", "cpu": "40GiB"}, or {} for all of it'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    parser.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    parser.add_argument("--prompts", type=Path, help="a file with a prompt on every line")
    parser.add_argument("--chat", action="append", help="what a user says; the model answers by its chat template")
    parser.add_argument("--system", help="the system's message before each --chat")
    parser.add_argument("--gap", metavar="TEXT", help="characters that stand for a gap in a prompt, such as '<gap>'")
    parser.add_argument("--gap-tokens", type=read_as(int, "[1, inf)"), metavar="N", help="a gap is N tokens")
    parser.add_argument(
        "--gap-max", type=read_as(int, "[1, inf)"), metavar="N", help="a gap is at most N tokens: end of text ends it"
    )
    add_decoding_options(parser, "most tokens of a text (default: 64, or as many as fit)")
    add_options(parser, seed=0, batch_size=64, weights=None, device="cpu")
    about = "packed, or a JSON spec; its keys as --engine.KEY: faster, and rounded otherwise"
    parser.add_argument("--engine", type=read_spec, help=about)
    add_adapter_options(parser)
    parser.add_argument("--tensor-parallel", type=int, help="share the model out over so many processes of torchrun")
    parser.add_argument("--max-memory", help=MEMORY)
    parser.add_argument("--stream", action="store_true", help="show every step of one prompt; · is a mask")
    parser.add_argument("--trace", action="store_true", help="show the step that committed each token")


def add_decoding_options(parser: argparse.ArgumentParser, length: str) -> None:
    """Add the options of `settings`, and the length of a text.

    Args:
        parser: of the verb.
        length: help of --gen-length.
    """
    parser.add_argument("--gen-length", type=int, help=length)
    parser.add_argument("--block-length", type=int, help="tokens of a block (default: the run's)")
    parser.add_argument("--policy", help="a name of `gen list decoding_policies`, or a JSON spec (default: the run's)")
    parser.add_argument("--threshold", type=float, help="short for --policy.threshold")
    parser.add_argument("--block-schedule", help="a name of `gen list block_schedules`, or a JSON spec")
    parser.add_argument("--kv-plan", help="a name of `gen list kv_plans`, a JSON spec, or none (default: the run's)")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default: the run's)")


def settings(args: argparse.Namespace) -> Decoding:
    """Return the run's decoding, changed by the options; keys such as --block_schedule.sub 8 change it further."""
    from gen.config.checkpoints import locate, read
    from gen.config.spec import override
    from gen.text.decoding import Decoding
    from gen.training.run import run_from

    checkpoint = locate(args.run)
    how = run_from(read(checkpoint, verify=False)["run"], args.run).sampler
    if not isinstance(how, Decoding):
        raise UserError(f"{args.run} is sampled, not decoded: see gen sample --help")
    parts = {"policy": args.policy, "block_schedule": args.block_schedule, "kv_plan": args.kv_plan}
    how = override(
        how.with_files_in(checkpoint), {key: parse_spec(value) for key, value in parts.items() if value is not None}
    )
    short = {"policy.threshold": args.threshold, "block_schedule.length": args.block_length}
    short["sampling.temperature"] = args.temperature
    return override(how, {key: value for key, value in short.items() if value is not None})


def run(args: argparse.Namespace) -> int:
    from gen.training.distributed import is_main

    prompts = list(args.prompt or ())
    if args.prompts is not None:
        prompts += read_lines(args.prompts)
    if not prompts and not args.chat:
        raise UserError("nothing to begin with: give --prompt TEXT (it may be empty), --prompts FILE or --chat TEXT")
    if args.chat and (prompts or args.gap is not None):
        raise UserError("--chat and prompts or a gap are given; give one")
    if args.system is not None and not args.chat:
        raise UserError("--system is for --chat, which is not given")
    given: list[Any] = [*_with_gaps(prompts, args)]
    pipeline = _pipeline(args)
    if args.chat:
        given = [*pipeline.chat_prompts(_chats(args))]
    if args.stream:
        if len(given) > 1:
            raise UserError(f"--stream shows one prompt, and {len(given)} are given")
        if args.trace:
            raise UserError("--stream and --trace are given; give one")
        for step in pipeline.stream(given[0], args.gen_length, seed=args.seed):
            if is_main():
                print(step.text, file=exact_output(), flush=True)
        return 0
    texts = pipeline.generate(given, args.gen_length, seed=args.seed, batch_size=args.batch_size)
    if not is_main():
        return 0
    for prompt, text, document in zip(given, texts.texts, texts.documents, strict=True):
        line = f"{prompt}{pipeline.separator}{text}" if isinstance(prompt, str) else document
        print(text if args.chat else line, file=exact_output())
    if args.trace:
        _trace(texts, pipeline)
    speed = texts.tokens / texts.seconds if texts.seconds else 0.0
    engine = f" ({pipeline.net.about})" if args.engine else ""
    pace = f"{texts.nfe:.1f} evaluations each, {texts.tokens_per_forward:.2f} tokens per evaluation"
    reasons = ", ".join(sorted(set(texts.reasons)))
    print(f"{texts.tokens} tokens, {pace}, {speed:.0f} tokens/s; ended by {reasons}{engine}", file=sys.stderr)
    return 0


def _with_gaps(prompts: list[str], args: argparse.Namespace) -> list[str | list[str | Gap]]:
    """Return prompts with gaps where the characters stand that --gap names; without it every prompt is plain text."""
    from gen.text.gaps import Gap

    sizes = args.gap_tokens, args.gap_max
    if args.gap is None:
        if sizes != (None, None):
            raise UserError("--gap-tokens and --gap-max are those of a --gap: --prompt 'a <gap> b' --gap '<gap>'")
        return [*prompts]
    if not args.gap or not any(args.gap in prompt for prompt in prompts):
        raise UserError(f"--gap {args.gap!r} stands in no prompt")
    if (args.gap_tokens is None) == (args.gap_max is None):
        raise UserError("--gap: give its length, either --gap-tokens N or --gap-max N")
    gap, given = Gap(*sizes), list[str | list[str | Gap]]()
    for prompt in prompts:
        first, *others = prompt.split(args.gap)
        parts = [first, *(part for other in others for part in (gap, other))]
        given.append([part for part in parts if part != ""] if others else prompt)
    return given


def _chats(args: argparse.Namespace) -> list[list[dict[str, str]]]:
    """Return the messages of each --chat."""
    before = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [[*before, {"role": "user", "content": text}] for text in args.chat]


def _pipeline(args: argparse.Namespace) -> TextPipeline:
    """Return the run's model where the options want it, decoded as they say."""
    from gen.pipeline import load
    from gen.training.distributed import processes

    if args.tensor_parallel is None and processes()[1] > 1:
        raise UserError(f"gen decode runs in one process, and {processes()[1]} are started: give --tensor-parallel too")
    if args.engine is not None and (args.tensor_parallel is not None or args.max_memory is not None):
        raise UserError("--engine prepares a model on one device: give it without --tensor-parallel and --max-memory")
    memory = None if args.max_memory is None else parse_json(args.max_memory, "--max-memory")
    placed = {"tensor_parallel": args.tensor_parallel, "max_memory": memory}
    loaded = load(args.run, args.weights, args.device, **placed, **given_adapters(args))
    pipeline: TextPipeline = dataclasses.replace(loaded, decoding=args.settings)
    return pipeline if args.engine is None else pipeline.prepared(args.engine)


def _trace(texts: GeneratedTexts, pipeline: TextPipeline) -> None:
    """Print token@step in the order of the text, several tokens together where they are one character."""
    from gen.text.detokenize import text_pieces
    from gen.text.gaps import text_positions

    for d in texts.decoded:
        for i in range(len(d.nfe)):
            text = slice(int(d.prompt_end[i]), int(d.text_end[i]))
            tokens, gap_start, steps = (v[i, text].tolist() for v in (d.tokens, d.gap_start, d.commit_step))
            kept, words = text_positions(tokens, gap_start, pipeline.net.eos_token_ids), list[str]()
            left = [k for k in range(len(tokens)) if gap_start[k] >= 0 and k not in kept]
            for piece, n in text_pieces([tokens[k] for k in kept], pipeline.string):
                written = [str(steps[k]) for k in kept[:n] if gap_start[k] >= 0]
                words.append(piece.removeprefix(pipeline.separator) + ("@" if written else "") + ",".join(written))
                del kept[:n]
            print(" ".join([*words, *(f"<end>@{steps[k]}" for k in left)]), file=exact_output())
