"""The terminal: what verbs, warnings and libraries print there cannot steer it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from gen.config.errors import printable

__all__ = ["Terminal", "exact_output", "harmless_output"]

# They warn, when diffusers imports torchao, of its libraries for other machines.
CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")


class Terminal:
    """A text stream in which control characters, such as those of a file's name, are shown as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text; line ends and tabs stay, and the carriage returns around a progress bar."""
        body = text.strip("\r")
        head, _, tail = text.partition(body) if body else (text, "", "")
        self.stream.write(head + printable(body, keep="\n\t") + tail)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def harmless_output() -> Iterator[None]:
    """Make the standard streams Terminals, and a warning one line, within; loggers in CHATTY say errors alone."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    before = warnings.formatwarning
    streams: Any = (Terminal(sys.stdout), Terminal(sys.stderr))
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        warnings.formatwarning = lambda message, *_: f"gen: {printable(str(message))}\n"
        try:
            yield
        finally:
            warnings.formatwarning = before


def exact_output() -> TextIO:
    """Return the standard output, to write texts as they are where it is no terminal."""
    out: Any = sys.stdout
    return out if out.isatty() or not isinstance(out, Terminal) else out.stream
