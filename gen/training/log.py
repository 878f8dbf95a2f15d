"""The record of a run: a progress bar or plain lines on the terminal, one JSON object per event in metrics.jsonl."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import parse_json, read_lines
from gen.config.spec import Json

__all__ = ["MetricsFile", "ProgressBar", "SpeedMeter", "read_metrics"]

MEASURED = ("seconds", "images_per_second", "tokens_per_second")  # what two equal runs do not have in common


class SpeedMeter:
    """Images, or tokens of text, per second since the last call, and the seconds since training began.

    Args:
        step: steps done.
        batch_size: global samples of a step.
        x: of one item; integers are text.
    """

    def __init__(self, step: int, batch_size: int, x: Tensor) -> None:
        self._began = self._last = time.perf_counter()
        self._step, text = step, not x.is_floating_point()
        self._unit, self._each = ("tokens", batch_size * len(x)) if text else ("images", batch_size)

    def measure(self, step: int) -> dict[str, float]:
        """Return the values by name after so many steps."""
        now = time.perf_counter()
        rate = (step - self._step) * self._each / max(now - self._last, 1e-9)
        self._step, self._last = step, now
        return {"seconds": round(now - self._began, 3), f"{self._unit}_per_second": float(f"{rate:.4g}")}


class MetricsFile:
    """metrics.jsonl, appended and flushed line by line; opened at a step, it drops the lines of later steps."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [json.dumps(line) + "\n" for line in read_metrics(path, measured=True) if line["step"] <= step]
            partial = path.with_name(f".partial-{path.name}")
            partial.write_text("".join(kept))
            partial.replace(path)
        self._file = path.open("a")

    def write(self, **values: object) -> None:
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, measured: bool = False) -> list[Json]:
    """Read the events of a metrics.jsonl; what a kill cut short, or is damaged, ends the list.

    Args:
        path: the file.
        measured: True for the clock's values too, see `SpeedMeter`; those of two equal runs differ.
    """
    events = []
    try:
        for line in read_lines(path):
            event = parse_json(line, path)
            if not isinstance(event, dict):
                break
            events.append({key: value for key, value in event.items() if measured or key not in MEASURED})
    except UserError:
        if not path.exists():
            raise
    return events


class ProgressBar:
    """A tqdm bar with the time to go on a terminal; elsewhere a plain line every `quiet_seconds`."""

    def __init__(self, name: str, total: int, start: int = 0, quiet: bool = False, quiet_seconds: float = 15.0) -> None:
        self._name, self._total, self._done, self._start = name, total, start, start
        self._began = self._printed = time.perf_counter()
        self._quiet, self._pause = quiet, quiet_seconds
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=start, desc=name, dynamic_ncols=True)

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
        """Print a line above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
