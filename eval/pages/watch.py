"""The page of runs that train: their losses, their speed, how far they are, and their samples so far."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.config.writing import is_alive
from gen.eval.pages import render
from gen.eval.plot import Plot, Point, Series
from gen.training.log import read_metrics, read_run_file

__all__ = ["WatchedRun", "find_runs", "watch_page"]

MOST = 300  # points of a line
MAIN = ("loss", "val_loss", "images_per_second", "tokens_per_second")  # of the curves that are shown at once
SHARES = ("mfu", "data_wait")  # in percent
LABELS = {
    "images_per_second": "images/s",
    "tokens_per_second": "tokens/s",
    "data_wait": "data wait",
    "peak_mb": "peak MiB",
}
LATEST = 4  # previews that are shown
KNOWN = ("step", "split", "seconds", "peak_mb")  # values that are no curves


@dataclass(frozen=True)
class WatchedRun:
    """A run folder as it is now.

    Attributes:
        folder: of the run.
        name: on the page.
    """

    folder: Path
    name: str

    @cached_property
    def events(self) -> list[Json]:
        """Events of metrics.jsonl; [] before there are any."""
        file = self.folder / "metrics.jsonl"
        return read_metrics(file, measured=True) if file.exists() else []

    @cached_property
    def total(self) -> int:
        """Steps that the run is to have."""
        about = read_run_file(self.folder / "run.json")
        run = about.get("run") if isinstance(about, dict) else None
        steps = run.get("steps") if isinstance(run, dict) else None
        if not isinstance(steps, int):
            raise UserError(f"{self.folder / 'run.json'} is no run's: it does not say its steps")
        return steps

    @property
    def step(self) -> int:
        return max((event["step"] for event in self.events), default=0)

    @cached_property
    def state(self) -> str:
        """Return "running", also on another machine, "finished" or "stopped"."""
        lock = self.folder / ".lock"
        holder = lock.read_text(encoding="utf-8") if lock.exists() else ""
        if found := re.match(r"process (\d+) on (\S+), ", holder):
            if found[2] != socket.gethostname():
                return f"running on {found[2]}"
            if is_alive(int(found[1])):
                return "running"
        return "finished" if self.step >= self.total else "stopped"

    @property
    def going_on(self) -> bool:
        return self.state.startswith("running")

    @property
    def facts(self) -> Json:
        """Numbers beside the name: steps, time, time to go, the newest loss, speed, waiting and memory."""
        train = [event for event in self.events if event.get("split") == "train" and "seconds" in event]
        facts: Json = {"step": f"{self.step:,} of {self.total:,}"}
        if train:
            facts["time"] = _duration(float(train[-1]["seconds"]))
        if self.going_on and len(train) > 1:
            early, late = train[max(0, len(train) - 10)], train[-1]
            pace = (late["seconds"] - early["seconds"]) / max(late["step"] - early["step"], 1)
            facts["to go"] = _duration(max(0.0, pace * (self.total - self.step)))
        for key in (*MAIN, *SHARES, "peak_mb"):
            newest = next((event[key] for event in reversed(self.events) if key in event), None)
            text = None if newest is None else f"{newest:.1%}" if key in SHARES else f"{newest:.4g}"
            facts[LABELS.get(key, key)] = text
        return facts

    @property
    def previews(self) -> list[Json]:
        """The newest previews, newest first."""
        files = sorted((self.folder / "samples").glob("step-*.*"))[-LATEST:]
        return [found for file in reversed(files) if (found := _preview(file)) is not None]

    def curve(self, key: str) -> list[Point]:
        """Return the values of a key against steps, thinned to means of neighbours."""
        points = [(event["step"], event[key]) for event in self.events if isinstance(event.get(key), (int, float))]
        each = -(-len(points) // MOST) or 1
        parts = [points[i : i + each] for i in range(0, len(points), each)]
        return [Point(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def find_runs(folders: Sequence[Path]) -> list[WatchedRun]:
    """Return the runs in folders: each itself, or if it is none, those in it.

    Args:
        folders: of runs, or of folders of runs.

    Raises:
        UserError: if a folder is none and has none.
    """
    found: list[Path] = []
    for folder in folders:
        here = [folder] if (folder / "run.json").is_file() else sorted(p.parent for p in folder.glob("*/run.json"))
        if not here:
            raise UserError(f"{folder} is no run and holds none: give folders that `gen train` or `gen distill` wrote")
        found += [run for run in here if run not in found]
    names = [run.resolve().name for run in found]
    return [
        WatchedRun(run, name if names.count(name) == 1 else str(run)) for run, name in zip(found, names, strict=True)
    ]


def watch_page(runs: Sequence[WatchedRun], every: float = 0.0, title: str = "Runs") -> str:
    """Return the whole document; it loads nothing.

    Args:
        runs: in the order of their colours.
        every: seconds after which a browser reads it again; 0 for never.
        title: of the page.
    """
    context: Json = {
        "title": title,
        "runs": runs,
        "every": every,
        "most": MOST,
        "now": datetime.now(UTC).strftime("%d %B %Y, %H:%M:%S UTC"),
        "main": list(_plots(runs, [key for key in MAIN if key in _keys(runs)])),
        "others": list(_plots(runs, [key for key in _keys(runs) if key not in MAIN])),
    }
    return render("watch.html", context)


def _keys(runs: Sequence[WatchedRun]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for event in run.events for key in event if key not in KNOWN))


def _plots(runs: Sequence[WatchedRun], keys: Sequence[str]) -> Iterator[Plot]:
    for key in keys:
        series = [Series(run.name, points, i) for i, run in enumerate(runs) if (points := run.curve(key))]
        if series:
            yield Plot(f"{key} against steps", "steps", key.replace("_per_", " per "), series, log_x=False, marks=False)


def _preview(file: Path) -> Json | None:
    """Return what the page shows of a preview; None for a file that is being replaced or is none."""
    step = re.fullmatch(r"step-(\d+)", file.stem)
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if step is None or file.suffix not in (".png", ".txt"):
        return None
    png = base64.b64encode(data).decode() if file.suffix == ".png" else ""
    return {"step": int(step[1]), "png": png, "text": "" if png else data.decode(errors="replace")}


def _duration(seconds: float) -> str:
    """Return a time as people write it: 42 s, 3 min 20 s, 5 h 7 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
