"""The options that several verbs and scripts have: one spelling, one explanation, one way to read them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.fields import check_range
from gen.config.reading import parse_json
from gen.config.spec import convert

__all__ = ["add_keys", "add_option", "add_options", "parse_part", "parse_spec", "read_as", "read_spec", "set_threads"]


def read_as(hint: type, interval: str = "") -> Callable[[str], Any]:
    """Return the `type` of an argparse option: text is read and checked as a field of this annotation is.

    Args:
        hint: int, float, Path or str.
        interval: as of gen.config.fields.check_range; "" for any.
    """

    def read(text: str) -> Any:
        try:
            value = convert(text, hint, "value")
            if interval:
                check_range(value, interval, "value")
        except UserError as error:
            raise argparse.ArgumentTypeError(re.sub("^value( =|:) ", "", str(error))) from None
        return value

    return read


# name: flags, type, help
OPTIONS: dict[str, tuple[tuple[str, ...], Callable[[str], Any], str]] = {
    "run": (("run",), read_as(Path), "the folder of a run or of one checkpoint, or hf:owner/name@revision"),
    "out": (("--out",), read_as(Path), "the file or folder to write"),
    "n": (("-n", "--n"), read_as(int, "[1, 10000000]"), "number of samples"),
    "seed": (("--seed",), read_as(int), "sample i depends on the seed and on i alone"),
    "batch_size": (
        ("--batch-size",),
        read_as(int, "[1, 10000000]"),
        "samples at a time; changes nothing but speed and memory",
    ),
    "steps": (
        ("--steps",),
        read_as(int, "[1, 1000000]"),
        "solver steps; the evaluations they take are counted (default: the run's)",
    ),
    "weights": (("--weights",), str, "the label of an average, or raw (default: the first average)"),
    "device": (("--device",), str, "cpu, cuda, cuda:1 ..."),
    "threads": (("--threads",), read_as(int, "[0, 1024]"), "CPU threads (default: torch's)"),
}


def add_option(
    parser: argparse.ArgumentParser,
    name: str,
    default: object = None,
    help: str | None = None,
    required: bool = False,
) -> None:
    """Declare one of the common options.

    Args:
        parser: the verb's.
        name: run, out, n, seed, batch_size, steps, weights, device or threads; the attribute of the parsed arguments.
        default: the verb's default, which the help names; None for what the help says itself.
        help: the verb's own help in place of the common one.
        required: True for an option that must be given.
    """
    flags, kind, common = OPTIONS[name]
    text = common if help is None else help
    text = text if default is None else f"{text} (default: {default})"
    option = parser.add_argument(*flags, type=kind, default=default, help=text)
    option.required |= required


def add_options(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Declare several of the common options with their common help.

    Args:
        parser: the verb's.
        **defaults: default by name, see `add_option`.
    """
    for name, default in defaults.items():
        add_option(parser, name, default)


def parse_spec(text: str | None) -> Any:
    """Parse the value of an option that takes a name or a JSON spec.

    Args:
        text: "heun", '{"name": "heun", ...}', or None.

    Returns:
        The spec as a dict, or the text as it is.

    Raises:
        UserError: if the text begins like JSON and is none.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    return parse_json(text, repr(text))


def read_spec(text: str) -> Any:
    """Parse the value of an option that takes a name or a JSON spec, and beside it dotted keys, --solver.churn .1.

    As the `type` of an argparse option it marks those that do: see `add_keys`.

    Args:
        text: as of `parse_spec`.
    """
    try:
        return parse_spec(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_keys(args: argparse.Namespace, keys: dict[str, dict[str, str]]) -> None:
    """Add dotted keys to the specs of the options that they begin with.

    Args:
        args: parsed; an option that was not given becomes a spec without a name, which changes what stands there.
        keys: text by key, by the option's attribute.
    """
    for option, changes in keys.items():
        given = getattr(args, option)
        spec = {} if given is None else {"name": given} if isinstance(given, str) else given
        setattr(args, option, {**spec, **changes})


def parse_part(text: str) -> tuple[int, int]:
    """Parse the value of --part.

    Args:
        text: "k/n", such as "1/4".

    Returns:
        k and n, 1 <= k <= n.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"--part {text!r}: expected k/n, 1/4 to 4/4 for four parts")
    return k, n


def set_threads(threads: int | None) -> None:
    """Set torch's number of CPU threads.

    Args:
        threads: the value of --threads; None or 0 leaves torch's choice.
    """
    if threads:
        import torch

        torch.set_num_threads(threads)
