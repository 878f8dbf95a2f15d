"""Evaluate a text model on tasks of EleutherAI's lm-evaluation-harness.

gen lm-eval runs/text --tasks gsm8k,my_task --include folder/of/yaml --policy threshold --threshold .9 --limit 100

Texts are written by the run's decoding, changed by the options; log-likelihoods are bounds. All options of the harness'
own command line: python -m gen.eval.harness --model gen --model_args run=runs/text,policy=threshold --tasks ...
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from gen.cli.decode import add_decoding_options, settings
from gen.cli.lib.options import add_option, add_options, read_as
from gen.config.errors import UserError
from gen.config.spec import Json

__all__ = ["add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    count = read_as(int, "[0, inf)")
    add_option(parser, "run")
    parser.add_argument("--tasks", required=True, help="names with commas between, of the harness or of --include")
    parser.add_argument("--include", type=Path, help="a folder with task files of your own (.yaml)")
    parser.add_argument(
        "--num-fewshot",
        type=count,
        help="worked examples before each question (default: the task's)",
    )
    parser.add_argument("--limit", type=read_as(int, "[1, inf)"), help="questions of each task (default: all)")
    parser.add_argument("--apply-chat-template", action="store_true", help="ask by the tokenizer's chat template")
    parser.add_argument("--confirm-run-unsafe-code", action="store_true", help="run tasks that run what is written")
    parser.add_argument(
        "--masks",
        type=read_as(int, "[2, inf)"),
        default=128,
        help="of each block that is scored (default: 128)",
    )
    parser.add_argument(
        "--bootstrap-iters",
        type=count,
        default=1000,
        help="of the harness' errors (default: 1000)",
    )
    add_decoding_options(parser, "most tokens of a text (default: the task's, max_gen_toks)")
    add_options(parser, seed=0, batch_size=64, weights=None, device="cpu")
    add_option(parser, "out", help="a .json file with the results")


def run(args: argparse.Namespace) -> int:
    from gen.config.writing import write_text
    from gen.eval.harness import harness_model
    from gen.pipeline import load
    from gen.text.pipeline import TextPipeline

    pipeline = load(args.run, args.weights, args.device)
    assert isinstance(pipeline, TextPipeline)  # or there were no settings
    model = harness_model()(
        dataclasses.replace(pipeline, decoding=args.settings), seed=args.seed, masks=args.masks,
        gen_length=args.gen_length, temperature=args.temperature, batch_size=args.batch_size,
    )  # fmt: skip
    results = _results(model, args)
    from lm_eval.utils import handle_non_serializable, make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if (error := model.monte_carlo) is not None:
        print(f"log-likelihoods are bounds; mean Monte Carlo error {error.value:.3g} nats ({args.masks} masks a block)")
    if args.out is not None:
        write_text(args.out, json.dumps(results, indent=1, default=handle_non_serializable) + "\n")
    return 0


def _results(model: Any, args: argparse.Namespace) -> Json:
    """Return what the harness measured."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if args.include is not None and not args.include.is_dir():
        raise UserError(f"--include {args.include} is no folder")
    tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    folder = None if args.include is None else str(args.include)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):  # the harness has thousands of its own, and reads them all
        manager = TaskManager(include_path=folder)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise UserError(f"the harness has no task {unknown[0]!r}; its own are listed by: lm-eval ls tasks")
    results: Json | None = simple_evaluate(
        model, tasks=tasks, task_manager=manager, num_fewshot=args.num_fewshot, limit=args.limit,
        apply_chat_template=args.apply_chat_template, bootstrap_iters=args.bootstrap_iters, log_samples=False,
        confirm_run_unsafe_code=args.confirm_run_unsafe_code,
    )  # fmt: skip
    assert results is not None  # of the first process, and there is one
    return results
