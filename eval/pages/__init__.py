"""Pages: one self-contained HTML file each, made by Jinja templates and one style sheet. They load and run nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gen.config.spec import Json
from gen.eval.plot import tick_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "render"]

STYLES = 6  # colours s0 .. s5 of the style sheet; shapes take turns too, so nothing is said by colour alone


def environment() -> Environment:
    """Return Jinja's environment of this folder: every word that is put into a page is escaped, and must be there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals["STYLES"] = STYLES
    found.filters |= {
        "px": "{:.1f}".format,
        "tick": tick_text,
        "number": "{:,.0f}".format,
        "minus": lambda text: str(text).replace("-", "−"),
    }
    return found


def render(template: str, context: Json) -> str:
    """Fill a template.

    Args:
        template: file name in this folder.
        context: what it shows.

    Returns:
        The whole document.
    """
    date = datetime.now(UTC).strftime("%d %B %Y")
    return environment().get_template(template).render({"date": date, **context})
