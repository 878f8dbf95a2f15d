"""Pages: one self-contained HTML file each, made by Jinja templates and one style sheet.

They load nothing, and run nothing but the script of this folder that the page is made with, which its own
Content-Security-Policy names by hash. Without scripts the tables stay as they are.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gen.config.spec import Json
from gen.eval.plot import tick_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["compact", "environment", "policy", "render"]

FOLDER = Path(__file__).parent

STYLES = 6  # colours s0 .. s5 of the style sheet; shapes take turns too, so nothing is said by colour alone


def environment() -> Environment:
    """Return Jinja's environment of this folder: every word that is put into a page is escaped, and must be there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(FOLDER)
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals["STYLES"] = STYLES
    found.filters |= {
        "px": "{:.1f}".format,
        "tick": tick_text,
        "number": "{:,.0f}".format,
        "compact": compact,
        "minus": lambda text: str(text).replace("-", "−"),
    }
    return found


def compact(count: float) -> str:
    """Return a large number to three digits, as papers print parameters: 675M.

    Args:
        count: at least 0.
    """
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if float(f"{count:.2e}") >= unit:
            return f"{float(f'{count / unit:.3g}'):g}{word}"
    return f"{count:.0f}"


def policy(script: str | None = None, allowed: str = "img-src data:") -> str:
    """Return a page's Content-Security-Policy: its own styles, one script by hash, and nothing else.

    Args:
        script: file name in this folder; None for none.
        allowed: what else may be loaded.
    """
    hashed = [f"script-src 'sha256-{_sha256(_script(script))}'"] if script else []
    return "; ".join(["default-src 'none'", "style-src 'unsafe-inline'", allowed, *hashed])


def render(template: str, context: Json, script: str | None = None, allowed: str = "img-src data:") -> str:
    """Fill a template.

    Args:
        template: file name in this folder.
        context: what it shows.
        script: file name in this folder of the script that is put into the page; None for none.
        allowed: what the page may load, as of `policy`.

    Returns:
        The whole document.
    """
    date = datetime.now(UTC).strftime("%d %B %Y")
    common = {"date": date, "policy": policy(script, allowed), "script": _script(script) if script else ""}
    return environment().get_template(template).render({**common, **context})


def _script(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
