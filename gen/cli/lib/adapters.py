"""The options of adapters that are added to a model: --adapters RUN=FACTOR ... and --ties."""

from __future__ import annotations

import argparse
from typing import Any

from gen.config.errors import UserError

__all__ = ["add_adapter_options", "given_adapters"]


def add_adapter_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add the options.

    Args:
        parser: the verb's.
        required: whether adapters must be given.
    """
    given = "folders of runs with adapters of this model, each with =FACTOR (default: 1), apart by spaces or commas"
    parser.add_argument("--adapters", nargs="+", action="extend", metavar="RUN", required=required, help=given)
    kept = "merge them by TIES, which keeps this share of each run's largest changes (default: add them up)"
    parser.add_argument("--ties", type=float, help=kept)


def given_adapters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of gen.load that the options stand for.

    Args:
        args: the verb's, parsed.

    Raises:
        UserError: for a factor that is no number, and for --ties alone.
    """
    texts = [text for given in getattr(args, "adapters", None) or () for text in given.split(",") if text]
    ties = getattr(args, "ties", None)
    if ties is not None and not texts:
        raise UserError("--ties is given without --adapters")
    return {"adapters": [_pair(text) for text in texts], "ties": ties} if texts else {}


def _pair(text: str) -> tuple[str, float]:
    """Return a folder and its factor."""
    folder, equals, factor = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return folder, float(factor)
    except ValueError:
        raise UserError(f"--adapters {text}: {factor!r} is no number; allowed: RUN or RUN=FACTOR") from None
