"""The record of a run: a progress bar or plain lines on the terminal, one JSON object per event in metrics.jsonl."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gen.config.errors import UserError, counted, printable
from gen.config.formats import NEWEST, check_format
from gen.config.reading import parse_json, read_json
from gen.config.spec import Json
from gen.config.writing import write_text
from gen.training.speed import MEASURED

__all__ = ["MetricsFile", "ProgressBar", "read_metrics", "read_run_file"]


class MetricsFile:
    """metrics.jsonl, appended and flushed line by line; opened at a step, it drops the lines of later steps.

    Attributes:
        problem: what is to be said of damaged lines, such as one that a kill cut short, which are dropped; else "".
    """

    def __init__(self, path: Path, step: int) -> None:
        events, damaged = _events(path) if path.exists() else ([], 0)
        self.problem = f"{path}: left out {counted(damaged, 'damaged line', 'damaged lines')}" if damaged else ""
        write_text(path, "".join(json.dumps(event) + "\n" for event in events if event["step"] <= step))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: object) -> None:
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path, measured: bool = False) -> list[Json]:
    """Read the events of a metrics.jsonl; lines that a kill cut short or that are damaged are left out.

    Args:
        path: the file.
        measured: True for the clock's values too, see `SpeedMeter`; those of two equal runs differ.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    return [
        {key: value for key, value in event.items() if measured or key not in MEASURED} for event in _events(path)[0]
    ]


def read_run_file(path: Path) -> Any:
    """Read a run.json; one that was written by hand, or that `--print-config` printed, has no format.

    Args:
        path: the file.

    Returns:
        JSON values that are not checked.

    Raises:
        UserError: for what is no JSON, or of another format.
    """
    content = read_json(path)
    if isinstance(content, dict) and "format" in content:
        check_format(content, NEWEST["run"], path)
    return content


def _events(path: str | Path) -> tuple[list[Json], int]:
    """Return the events, and how many lines are none."""
    try:
        events, lines = list[Json](), Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the metrics.jsonl of a run folder") from None
    for line in lines:
        try:
            event = parse_json(line.decode(), path)
        except (UserError, UnicodeDecodeError):
            continue
        if isinstance(event, dict) and isinstance(event.get("step"), int):
            events.append(event)
    return events, len(lines) - len(events)


class ProgressBar:
    """A tqdm bar with the time to go on a terminal; elsewhere a plain line every `quiet_seconds`.

    The bar is green, unless NO_COLOR is set in the environment.
    """

    def __init__(self, name: str, total: int, start: int = 0, quiet: bool = False, quiet_seconds: float = 15.0) -> None:
        self._name, self._total, self._done, self._start = name, total, start, start
        self._began = self._printed = time.perf_counter()
        self._quiet, self._pause = quiet, quiet_seconds
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm.auto import tqdm

            colour = None if os.environ.get("NO_COLOR") else "green"
            stream = getattr(
                sys.stderr, "stream", sys.stderr
            )  # gen.cli.lib.terminal shows escapes, and colours with them
            how = {"desc": printable(name), "dynamic_ncols": True, "colour": colour, "file": stream}
            self._bar = tqdm(total=total, initial=start, **how)

    def advance(self, count: int = 1, **values: float) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            if values:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
            return
        now = time.perf_counter()
        if not self._quiet and (now - self._printed > self._pause or self._done == self._total):
            self._printed = now
            rate = (self._done - self._start) / max(now - self._began, 1e-9)
            shown = " ".join(f"{k} {v:.4g}" for k, v in values.items())
            left = (self._total - self._done) / max(rate, 1e-9)
            self.say(f"{self._name}: {self._done}/{self._total} {shown} {rate:.1f}/s, {left:.0f} s to go")

    def say(self, line: str) -> None:
        """Print a line, unless it is empty, above the bar."""
        if self._quiet or not line:
            return
        if self._bar is not None:
            self._bar.write(printable(line), file=self._bar.fp)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
