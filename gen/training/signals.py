"""Stopping a run by a signal: SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["Interrupted", "StopRequest", "resumable", "stop_signals"]


Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(KeyboardInterrupt):
    """A signal asked the work to stop, and what is done is safe: of a run, a checkpoint was saved first.

    Args:
        message: what is safe, and what to do next.
        number: of the signal, from which the exit code follows.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)


@dataclass
class StopRequest:
    """A signal's request to stop, which the loop reads between steps.

    Attributes:
        number: of the signal; 0 before there was one.
    """

    number: int = 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Make SIGTERM and Ctrl-C a request, which the loop reads between steps; a second one acts as usual.

    Elsewhere than in the main thread, where signals cannot be handled, there is never one.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.number = number
        signal.signal(number, before[number])

    with _handled(handle) as before:
        yield stop


@contextmanager
def resumable(said: str) -> Iterator[Callable[[], None]]:
    """Let SIGTERM and Ctrl-C raise Interrupted at once, within work of which each part is whole or not there.

    Elsewhere than in the main thread SIGTERM acts as usual.

    Args:
        said: what is safe, and what to do next.

    Yields:
        Raises it between two parts, if it was raised where Python drops errors, such as in the end of an object.
    """
    stop = StopRequest()

    def check() -> None:
        if stop.number:
            raise Interrupted(said, stop.number)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.number = number
        check()

    with _handled(handle):
        try:
            yield check
        except KeyboardInterrupt as error:
            raise Interrupted(said, getattr(error, "number", signal.SIGINT)) from None


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Handler]]:
    """Handle both signals within, in the main thread; yield how they were handled before."""
    before: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
