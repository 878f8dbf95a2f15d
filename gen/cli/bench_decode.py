"""Measure how a text model is best decoded: success against tokens per forward, for every policy and setting.

gen bench-decode runs/lists --policies threshold:.9,.7 factor:1 topk:1,2,4:score=random --kv-plan none dual -n 200

A policy is a name, the values of its first field, and what else is set, with colons between: every policy is a curve,
every value a point on it. Tasks are the run's own where its data has any, ParallelBench's (waiting_line/copy,
waiting_line for all ten, latin_square, sudoku, or a JSON spec of `gen list parallelbench`), or questions of your own: a
.jsonl file of lines {"prompt": "...", "answer": "..."}, whose replies --checker checks. Several runs share a table.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import add_option, add_options, parse_spec
from gen.config.errors import UserError, nearest

if TYPE_CHECKING:
    from gen.eval.decoding import Task
    from gen.text.decoding import Decoding
    from gen.text.pipeline import TextPipeline

__all__ = ["add_arguments", "run"]

POLICIES = ["topk:1,2,4", "threshold:.95,.9,.8,.7", "factor:.5,1,2"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", type=Path, help="folders of runs or of single checkpoints")
    parser.add_argument("--tasks", nargs="+", help="(default: all of the run's data)")
    parser.add_argument("--policies", nargs="+", default=POLICIES, help=f"(default: {' '.join(POLICIES)})")
    parser.add_argument("--kv-plan", nargs="+", help="names of `gen list kv_plans`, specs or none (default: the run's)")
    add_option(parser, "n", 100, "prompts of each task")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--block-length", type=int, help="tokens of a block (default: the run's)")
    parser.add_argument("--gen-length", type=int, help="tokens of a reply, at most (default: the task's)")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default: the run's)")
    parser.add_argument("--source", help="a folder with a copy of ParallelBench: its own names and prompts")
    checker = "of a .jsonl task: exact, regex, rouge_l, bleu, words, or a function of yours, module:function"
    parser.add_argument("--checker", help=f"{checker} (default: exact)")
    add_options(parser, seed=0, batch_size=64, weights=None, device="cpu")
    parser.add_argument("--with", dest="others", nargs="+", type=Path, default=[], help="earlier .json files to add")
    add_option(parser, "out", help="the page; .json is written beside it (default: RUN/decode.html)")


def run(args: argparse.Namespace) -> int:
    from gen.config.writing import write_text
    from gen.eval.decoding import collect_decoding, decoding_table, measure_decoding
    from gen.eval.pages.decoding import decoding_page
    from gen.eval.quiet import OTHERS, LoadMeter
    from gen.eval.record import to_json
    from gen.pipeline import load
    from gen.text.pipeline import TextPipeline

    pipelines = [load(run, args.weights, args.device) for run in args.run]
    for folder, pipeline in zip(args.run, pipelines, strict=True):
        if not isinstance(pipeline, TextPipeline):
            raise UserError(f"{folder} is sampled, not decoded: see gen evaluate --help")
    if len({pipeline.name for pipeline in pipelines}) < len(pipelines):  # runs of one name in several folders
        pipelines = [replace(one, name=str(folder)) for folder, one in zip(args.run, pipelines, strict=True)]
    out = args.out or args.run[0] / "decode.html"
    if out.suffix != ".html":
        raise UserError(f"--out {out}: the page is a .html file")
    work = [(pipeline, task, _settings(pipeline, args)) for pipeline in pipelines for task in _tasks(pipeline, args)]
    others, records, meter = collect_decoding(args.others), [], LoadMeter()
    for pipeline, task, settings in work:
        records += measure_decoding(
            pipeline, task, settings, n=args.n, split=args.split, length=args.gen_length, seed=args.seed,
            batch_size=args.batch_size, command=_command(args),
        )  # fmt: skip
    write_text(out.with_suffix(".json"), json.dumps([to_json(record) for record in records], indent=1) + "\n")
    write_text(
        out, decoding_page([*records, *others], f"Decoding {', '.join(pipeline.name for pipeline in pipelines)}")
    )
    print(decoding_table([*records, *others]))
    if (used := meter.others() or 0.0) > OTHERS:
        print(f"tokens/s are too low to be a result: other processes used {used:.0%} of the processors")
    print(out)
    return 0


def _tasks(pipeline: TextPipeline, args: argparse.Namespace) -> list[Task]:
    """Return the tasks that are named, or all of the run's data."""
    from gen.config.spec import build
    from gen.data.lists import Lists
    from gen.eval.parallelbench.lib.rules import TASKS
    from gen.eval.parallelbench.lists import ListTask
    from gen.eval.question_file import QuestionFile

    data = getattr(pipeline.data, "of", pipeline.data)  # a student's are its teacher's answers to prompts of these
    own = data.tasks if isinstance(data, Lists) else ()
    if not (args.tasks or own):
        raise UserError("the run's data has no tasks: give --tasks, such as waiting_line/copy or FILE.jsonl")
    more = {} if args.source is None else {"source": args.source}
    if args.checker is not None and not any(name.endswith(".jsonl") for name in args.tasks or ()):
        raise UserError(f"--checker {args.checker} is for questions of a file: give --tasks FILE.jsonl")
    tasks: list[Task] = []
    for name in args.tasks or own:
        family, _, task = name.partition("/")
        if name in own:
            tasks.append(ListTask(name, data))
        elif family == "waiting_line" and task in ("", *TASKS):
            tasks += [build("eval.parallelbench", family, task=one, **more) for one in ([task] if task else TASKS)]
        elif family == "latin_square" and not task:
            tasks.append(build("eval.parallelbench", family, **more))
        elif name == "sudoku":
            tasks.append(build("eval.parallelbench", name))
        elif name.endswith(".jsonl"):
            tasks.append(QuestionFile(name, args.checker or "exact"))
        elif name.lstrip().startswith("{"):
            tasks.append(build("eval.parallelbench", parse_spec(name)))
        else:
            known = [
                *own,
                "waiting_line",
                *(f"waiting_line/{t}" for t in TASKS),
                "latin_square",
                "sudoku",
                "FILE.jsonl",
            ]
            raise UserError(f"unknown task {name!r}. {nearest(name, known)}")
    return tasks


def _settings(pipeline: TextPipeline, args: argparse.Namespace) -> dict[str, dict[str, Decoding]]:
    """Return the settings of every policy with every KV plan, by curve and point."""
    from gen.eval.decoding import sweep

    settings: dict[str, dict[str, Decoding]] = {}
    for kv_plan in args.kv_plan or [None]:
        changes = {} if kv_plan is None else {"kv_plan": None if kv_plan == "none" else parse_spec(kv_plan)}
        for text in args.policies:
            curve, policies = sweep(text)
            tail = "" if kv_plan in (None, "none") else f", {_name(changes['kv_plan'])}"
            points = {
                label + tail: pipeline.plan(
                    policy=policy, block_length=args.block_length, temperature=args.temperature, **changes
                )
                for label, policy in policies.items()
            }
            settings.setdefault(curve + tail, {}).update(points)
    return settings


def _name(spec: object) -> str:
    """Return a KV plan as a word, or its keys and values."""
    if not isinstance(spec, dict):
        return str(spec)
    return ", ".join(f"{v}" if k == "name" else f"{k} {v}" for k, v in spec.items())


def _command(args: argparse.Namespace) -> str:
    """Return the command line that repeats this."""
    words = ["gen", "bench-decode", *map(str, args.run), "--policies", *args.policies, "--n", str(args.n)]
    words += ["--seed", str(args.seed), "--batch-size", str(args.batch_size), "--split", args.split]
    several = {"tasks": args.tasks, "kv-plan": args.kv_plan}
    single = {
        "block-length": args.block_length,
        "gen-length": args.gen_length,
        "temperature": args.temperature,
        "source": args.source,
        "checker": args.checker,
        "weights": args.weights,
        "device": None if args.device == "cpu" else args.device,
    }
    for key, values in several.items():
        words += [f"--{key}", *values] if values else []
    for key, value in single.items():
        words += [f"--{key}", str(value)] if value is not None else []
    return shlex.join(words)
