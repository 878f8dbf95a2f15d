"""Rank models by people's votes: a local page shows K pictures of the same prompt or noise, and takes their order.

gen arena samples/a samples/b runs/c --votes votes.jsonl      then open the address that it prints
gen arena --votes votes.jsonl                                 prints the ranking

Models are folders of pictures, where the same name is the same prompt or noise, or runs, which are sampled first. Every
vote is on the disk before the next pictures are shown, so the server can be stopped at any time and started again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import add_option, read_as
from gen.cli.sample import add_autoencoder_option, add_sampler_options
from gen.config.errors import UserError, nearest

if TYPE_CHECKING:
    from gen.eval.arena.rating import RatingRule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", type=Path, help="folders of pictures, and runs; none prints the ranking")
    parser.add_argument("--votes", type=Path, default=Path("votes.jsonl"), help="the votes (default: votes.jsonl)")
    parser.add_argument("--names", help="of the models, comma-separated (default: those of the folders)")
    parser.add_argument("--prompts", type=Path, help="a text file: line i is shown above picture i, by name")
    parser.add_argument("--k", type=int, default=4, help="pictures at a time (default: 4)")
    parser.add_argument("--rule", default="trueskill", help="trueskill, or all-pairs, the paper's sum")
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: 127.0.0.1, this machine alone)")
    port = "a port (default: 8000); 0 for any that is free"
    parser.add_argument("--port", type=read_as(int, "[0, 65535]"), default=8000, help=port)
    parser.add_argument("--json", action="store_true", help="print the ranking as JSON")
    add_option(parser, "n", 64, "pictures of each run")
    parser.add_argument("--labels", help="classes of the runs' pictures, as of gen sample (default: balanced)")
    add_sampler_options(parser)
    add_autoencoder_option(parser)


def run(args: argparse.Namespace) -> int:
    from gen.eval.arena.rating import RULES

    if args.rule not in RULES:
        raise UserError(f"--rule {args.rule!r}. {nearest(args.rule, RULES)}")
    return _serve(args, RULES[args.rule]) if args.models else _print(args, RULES[args.rule])


def _print(args: argparse.Namespace, rule: RatingRule) -> int:
    """Print the ranking of the votes."""
    from gen.config.spec import spec_of
    from gen.eval.arena.board import Board, standing_cells
    from gen.eval.arena.votes import read_votes
    from gen.eval.tables import aligned

    if not args.votes.exists():
        raise UserError(f"{args.votes} does not exist: give models to vote on, gen arena A B, or --votes FILE")
    board = Board.of(read_votes(args.votes), rule)
    if args.json:
        print(json.dumps([spec_of(row, named=False) for row in board.standings()], indent=2))
    else:
        print("\n".join(aligned(standing_cells(board.standings()), (1, 5))))
    return 0


def _serve(args: argparse.Namespace, rule: RatingRule) -> int:
    from gen.config.reading import read_lines
    from gen.eval.arena.contestants import contestants
    from gen.eval.arena.server import LOCAL, Arena, bound, serve
    from gen.eval.arena.votes import VoteFile

    folders = [_sampled(args, model) if _is_run(model) else model for model in args.models]
    names = [model.resolve().name for model in args.models] if args.names is None else args.names.split(",")
    models = contestants(folders, names)
    prompts = None if args.prompts is None else list(read_lines(args.prompts))
    listening = bound(args.host, args.port)
    with listening, VoteFile(args.votes) as votes:
        arena = Arena(models, votes, args.k, prompts, rule)
        address, port = listening.getsockname()[:2]
        where = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        print(f"{len(models)} models, {len(arena.pictures)} pictures each, {len(votes.votes)} votes in {args.votes}")
        print(f"{where}   ({where}/ranking; Ctrl-C ends)", flush=True)
        serve(arena, listening, LOCAL if address in LOCAL else ("*",))
    return 0


def _is_run(path: Path) -> bool:
    return (path / "run.json").exists() or (path / "manifest.json").exists()


def _sampled(args: argparse.Namespace, model: Path) -> Path:
    """Sample a run into a folder beside it, unless the same samples are there, and return the folder."""
    from gen.cli import sample
    from gen.config.spec import digest

    names = (
        "n",
        "labels",
        "autoencoder",
        "solver",
        "grid",
        "guide",
        "guidance_scale",
        "cache",
        "steps",
        "seed",
        "engine",
        "dtype",
    )
    verb = argparse.ArgumentParser()
    sample.add_arguments(verb)
    usual = vars(verb.parse_args([str(model)]))  # whatever options gen sample has besides
    given = argparse.Namespace(**{**usual, **{key: value for key, value in vars(args).items() if key in usual}})
    pipeline = sample.loaded(given)
    how = {name: getattr(args, name) for name in names} | {"weights": pipeline.weights, "model": pipeline.info}
    given.out = model / "arena" / digest(how)[:16]
    if not given.out.exists():
        sample.run(given)
    return given.out
