"""The dispatch of verbs: options, and errors as one line and an exit code. Contract: gen/cli/__init__.py."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import gen
import gen.cli
from gen.cli.lib.options import add_keys, read_as, read_spec
from gen.cli.lib.settings import flatten
from gen.cli.lib.terminal import harmless_output
from gen.config.errors import MissingDependency, NonFinite, UserError, nearest, printable
from gen.config.trust import allowing

__all__ = ["main", "verb_files", "verbs"]

OTHER_OPTIONS = {  # of pipelines and training scripts of diffusers, and of other tools -> ours
    "--cfg-scale": "--guidance-scale",
    "--checkpointing-steps": "--save-every",
    "--checkpoints-total-limit": "--keep",
    "--dataset-name": "--data",
    "--gradient-accumulation-steps": "--micro-batch-size, of which batch_size is a multiple,",
    "--height": "--size HEIGHTxWIDTH",
    "--learning-rate": "--optim.lr",
    "--lr": "--optim.lr",
    "--lr-scheduler": "--schedule",
    "--lr-warmup-steps": "--schedule.warmup",
    "--max-train-steps": "--steps",
    "--mixed-precision": "--precision",
    "--negative-prompt": "--negative",
    "--num-images-per-prompt": "--images-per-label",
    "--num-inference-steps": "--steps",
    "--num-samples": "--n",
    "--output-dir": "--out",
    "--resolution": "--data.size",
    "--resume-from-checkpoint": "--resume",
    "--sampler": "--solver",
    "--scheduler": "--solver, and --grid for its times,",
    "--train-batch-size": "--batch-size",
    "--train-data-dir": "--data",
    "--width": "--size HEIGHTxWIDTH",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors become a line on stderr.

    Args:
        argv: the words after `gen`; None for those of this process.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        with harmless_output():
            code = _dispatch([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `gen list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        message, code = _explain(error)
        trace = "".join(traceback.format_exception(error)) if debug else ""
        print(f"{printable(trace, keep=chr(10))}gen: {printable(message)}", file=sys.stderr)
        return code


def verbs() -> dict[str, str]:
    """Return the first line of each verb's help by verb, read without importing them."""
    texts = {name: ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "" for name, file in verb_files().items()}
    return {name: text.partition("\n")[0] for name, text in texts.items()}


def verb_files() -> dict[str, Path]:
    """Return the file of each verb, which is `gen VERB`, by verb."""
    files = sorted(file for folder in gen.cli.__path__ for file in Path(folder).glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files}


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("-V", "--version"):
        print(f"gen {gen.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = words[0]
    if name not in verb_files():
        raise UserError(f"unknown command {name!r}. {nearest(name, verb_files())}")
    verb = importlib.import_module(f"gen.cli.{name.replace('-', '_')}")
    parser = _parser(name, verb)
    if any(word in ("-h", "--help") for word in words[1:]):
        return _help(verb, parser, [word for word in words[1:] if word not in ("-h", "--help")])
    args = _parse(verb, parser, list(map(_fetched, words[1:])))
    if getattr(args, "print_config", False):
        from gen.config.spec import spec_of

        print(json.dumps(spec_of(args.settings, named=False), indent=2))
        return 0
    with allowing(args.allow):
        return verb.run(args)


def _fetched(word: str) -> str:
    """Return a word with the folder of a model for its name on the hub, alone or behind `--option=`."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value.startswith("hf:"):
        return word
    from gen.config.hub import local_folder

    return f"{option}{equals}{local_folder(value)}"


_Store = type(argparse.ArgumentParser().add_argument("--value"))  # argparse's action of one value


class _Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing a page of usage, and reads numbers and paths as fields are."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for kind in (int, float, Path):
            self.register("type", kind, read_as(kind))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See: {self.prog} --help")

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def single_options(self) -> set[str]:
        """Return the options with a value of which the last would win: those that are given once."""
        return {option for action in self._actions if type(action) is _Store for option in action.option_strings}

    def spec_options(self) -> dict[str, str]:
        """Return the attributes of options that take a spec, and so its dotted keys, by option."""
        actions = [action for action in self._actions if action.type is read_spec]
        return {option: action.dest for action in actions for option in action.option_strings}


def _parser(name: str, verb: ModuleType) -> _Parser:
    parser = _Parser(
        prog=f"gen {name}",
        description=verb.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    verb.add_arguments(parser)
    if hasattr(verb, "settings"):
        parser.add_argument("--print-config", action="store_true", help="print the resolved settings as JSON, and stop")
    about = "follow names of PACKAGE, code that is not gen's, where a checkpoint, run or record has them; repeatable"
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE", help=about)
    parser.add_argument("-h", "--help", action="store_true", help="show this help, and stop")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def _parse(verb: ModuleType, parser: _Parser, words: list[str]) -> argparse.Namespace:
    words, changes, keys = _split(words, parser, strict=not hasattr(verb, "settings"))
    args = parser.parse_args(words)
    add_keys(args, keys)
    args.overrides = changes
    if hasattr(verb, "settings"):
        from gen.config.spec import override

        settings = None
        try:
            with allowing(args.allow):
                settings = verb.settings(args)
            args.settings = override(settings, args.overrides)
        except UserError as error:
            raise UserError(f"{_meant(changes, parser.options(), settings)}{error}") from error
    return args


def _meant(changes: dict[str, str], options: list[str], settings: object) -> str:
    """Return what goes before the error for a misspelt option, which reads as a change of an unknown key."""
    fields = [f"--{name.replace('_', '-')}" for name in getattr(settings, "__dataclass_fields__", ())]
    for option in [f"--{key.replace('_', '-')}" for key in changes]:
        if option not in fields and (ours := _ours(option, [*options, *fields])):
            return f"{option}? {ours} "
        if close := get_close_matches(option, options, n=1, cutoff=0.8):
            return f"{option}? Is it {close[0]}? "
    return ""


def _ours(option: str, known: list[str]) -> str:
    """Return a sentence on what an option of other tools is called here, "" if that is none of the known ones."""
    ours = OTHER_OPTIONS.get(option, "")
    return f"It is {ours} here." if re.split("[ ,.]", ours)[0] in known else ""


def _split(
    words: list[str], parser: _Parser, strict: bool
) -> tuple[list[str], dict[str, str], dict[str, dict[str, str]]]:
    """Split words; underscores are as good as hyphens.

    Args:
        words: as typed.
        parser: of the verb.
        strict: whether options that the parser does not know are refused.

    Returns:
        The parser's words; changes {dotted key: text}; and the keys of specs, {attribute: {dotted key: text}}.
    """
    known, rest, options, specs = list[str](), iter(words), parser.options(), parser.spec_options()
    changes, keys = dict[str, str](), dict[str, dict[str, str]]()
    single, seen = parser.single_options(), set[str]()
    for word in rest:
        option, has_value, value = word.partition("=")
        hyphened = option.replace("_", "-")
        head, _, key = hyphened.partition(".")
        if not word.startswith("--") or word == "--":
            known.append(word)
        elif hyphened in options:
            if hyphened in single and hyphened in seen:
                raise UserError(f"{hyphened} is given twice: give it once")
            seen.add(hyphened)
            known.append(hyphened + has_value + value)
        elif strict and not (key and head in specs):
            hint = _ours(hyphened, options) or nearest(hyphened, options)
            raise UserError(f"unknown option {option!r} of {parser.prog}. {hint}")
        else:
            value = value if has_value else next(rest, "--")
            if value.startswith("--"):
                raise UserError(
                    f"{option} needs a value, such as {option} true. Options without one: {parser.prog} --help"
                )
            if key and head in specs:
                keys.setdefault(specs[head], {})[key.replace("-", "_")] = value
            else:
                changes[hyphened.lstrip("-").replace("-", "_")] = value
    return known, changes, keys


def _help(verb: ModuleType, parser: _Parser, words: list[str]) -> int:
    print(parser.format_help(), end="")
    if not hasattr(verb, "settings"):
        return 0
    try:
        args = _parse(verb, parser, words)
    except UserError as error:
        print(f"\nsettings: --KEY VALUE; give all arguments before --help to list the keys ({error})")
        return 0
    if about := getattr(verb, "about", lambda args: "")(args):
        print(f"\n{about}")
    print("\nsettings: --KEY VALUE, with these keys and values now")
    for key, value in flatten(args.settings):
        print(f"  --{key:<34} {value}")
    return 0


def _overview() -> str:
    rows = [f"  {name:<14}{line}" for name, line in verbs().items()]
    head = "usage: gen COMMAND ...   (gen COMMAND --help explains one; --debug shows tracebacks)"
    return "\n".join([head, "", (gen.__doc__ or "").partition("\n")[0], "", *rows])


def _is_torch_memory(error: BaseException) -> bool:
    """Return whether torch ran out of a device's memory, or of the CPU's."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _explain(error: BaseException) -> tuple[str, int]:
    """Return one line and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted", 128 + getattr(error, "number", signal.SIGINT)
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        return (
            f"out of memory{f': {asked[1]} more were asked for' if asked else ''}. When training, a smaller "
            "--micro-batch-size computes the same in less, and --precision bf16 needs half; elsewhere a smaller "
            "--batch-size"
        ), 1
    if isinstance(error, MissingDependency):
        return str(error), 3
    if isinstance(error, NonFinite):
        return str(error), 4
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}", 2
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("gen"):
        return f"the package {error.name!r} is not installed; see: gen doctor", 3
    text = " ".join(str(error).split())
    if re.search("gloo|nccl|Connection (closed|reset) by peer", text, re.IGNORECASE):
        return "another process of this run has ended, whose own message says why; run this again to go on", 1
    return f"{type(error).__name__}: {text} (this should not happen; add --debug for the traceback)", 1
