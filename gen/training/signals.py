"""Stopping a run by a signal: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "stop_signals"]


Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; a checkpoint was saved first."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Make SIGTERM and Ctrl-C set the returned flag, which the loop reads between steps; a second one acts as usual.

    Elsewhere than in the main thread, where signals cannot be handled, the flag is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Handler] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    for handled in (signal.SIGTERM, signal.SIGINT):
        before[handled] = signal.signal(handled, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
