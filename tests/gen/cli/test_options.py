"""The law of options: what a verb accepts it looks at, in every mode, or refuses; none is ignored in silence."""

import argparse
import shlex
from dataclasses import replace

import pytest

from gen.cli import main, verbs
from gen.cli._main import OTHER_OPTIONS, _Parser
from gen.training.recipes.lists import lists
from gen.training.trainer import train
from tests.gen.tiny import tiny

EVERYWHERE = {"allow", "debug", "help", "print_config"}  # looked at by the dispatch, in every verb
POWER = [{"name": "power", "std": std} for std in (0.05, 0.1)]
COMMANDS = {  # a mode of a verb, and the options that say nothing there
    "sample": ("sample {run} -n 2 --steps 1 --quiet --out {out}/a.png", ()),
    "evaluate": ("evaluate {run} -n 20 --steps 1 --metrics kid", ()),
    "search rmse": ("search {run} --steps 2 -n 2 --pool 4 --budget 3 --out {out}/a.json", ()),
    "search fid": ("search {run} --steps 2 -n 20 --pool 4 --budget 3 --fitness fid --out {out}/b.json", ()),
    "pairs": ("pairs --teacher {run} --out {out}/pairs -n 8 --steps 1 --quiet", ()),
    "pairs real": ("pairs --teacher {run} --out {out}/real -n 8 --steps 1 --real --quiet", ()),
    "train": ("train {run}/run.json --steps 1 --quiet --out {out}/run", ()),
    "distill": ("distill reflow --teacher {run} --out {out}/s --steps 1 --objective.pairs 8 --quiet", ()),
    "tune": ("tune {run} --by adadagrad --by.every 1 --quiet --out {out}/tuned", ()),
    "ema": ("ema {run} --std 0.1 --out {out}/ema", ()),
    "decode": ("decode {text} --prompt 'sort : b a =' --gen-length 4 --engine packed --engine.dtype float32", ()),
    "decode stream": ("decode {text} --prompt 'sort : b a =' --gen-length 4 --stream", ("batch_size",)),  # one prompt
    "list": ("list solvers", ()),
    "watch": ("watch {run} --out {out}/watch.html", ("every",)),
    "leaderboard": ("leaderboard {run} --out {out}/board.html", ()),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    train(tiny(steps=2, ema=POWER, keep=9, save_every=1, validate_every=0), root / "run", quiet=True)
    text = replace(lists(), steps=1, batch_size=4, sample_every=0, validate_every=0)
    train(replace(text, model=replace(text.model, width=16, depth=1, heads=2)), root / "text", quiet=True)
    assert main(["evaluate", str(root / "run"), "-n", "20", "--steps", "1", "--metrics", "kid"]) == 0
    return root


@pytest.mark.parametrize("mode", COMMANDS)
def test_every_option_is_looked_at_in_every_mode(mode, world, tmp_path, monkeypatch, capsys):
    command, silent = COMMANDS[mode]
    options, seen, parse = set(), set(), _Parser.parse_args

    class Watched(argparse.Namespace):
        def __getattribute__(self, name):
            seen.add(name)
            return super().__getattribute__(name)

    def watched(parser, words):
        options.update(action.dest for action in parser._actions)
        return Watched(**vars(parse(parser, words)))

    monkeypatch.setattr(_Parser, "parse_args", watched)
    words = shlex.split(command.format(run=world / "run", text=world / "text", out=tmp_path))
    assert main(words) == 0, capsys.readouterr().err
    assert options - seen - EVERYWHERE == set(silent)


def test_every_verb_is_here_or_has_tests_of_its_own():
    here = {command.partition(" ")[0] for command, _ in COMMANDS.values()}
    others = {
        "arena",
        "serve",
        "bench",
        "bench-decode",
        "doctor",
        "encode",
        "export",
        "import",
        "lm-eval",
        "merge",
        "perplexity",
        "push",
        "quickstart",
        "restore",
        "statistics",
        "throughput",
    }
    assert here | others >= set(verbs()) and not here & others


@pytest.mark.parametrize("theirs", OTHER_OPTIONS)
def test_an_option_of_other_tools_names_ours(theirs, world, capsys):
    said = []
    for words in (["sample", f"{world}/run"], ["train", "digits"]):
        assert main([*words, theirs, "1"]) == 2
        said.append(f"It is {OTHER_OPTIONS[theirs]} here." in capsys.readouterr().err)
    assert any(said)
