"""How a run is asked to stop: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupted", "stop_signals"]


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; a checkpoint was saved first."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set a flag that the loop reads between steps; the second one ends the process as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for asked in (signal.SIGTERM, signal.SIGINT):
        before[asked] = signal.signal(asked, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
