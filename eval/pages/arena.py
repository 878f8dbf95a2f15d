"""The pages of an arena: the one that takes votes, and the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gen.eval.pages import policy, render

if TYPE_CHECKING:
    from gen.eval.arena.board import Standing

__all__ = ["arena_page", "arena_policy", "standings_page"]

SERVED = "img-src 'self'; connect-src 'self'"  # besides the page's own style and script


def arena_policy() -> str:
    """Return the Content-Security-Policy of the page that takes votes."""
    return policy("arena.js", SERVED)


def arena_page() -> str:
    """Return the page that takes votes."""
    return render("arena.html", {"title": "K-Sort Arena"}, script="arena.js", allowed=SERVED)


def standings_page(standings: Sequence[Standing], votes: int) -> str:
    """Return the ranking as a page.

    Args:
        standings: best first.
        votes: that made it.
    """
    return render("standings.html", {"title": "K-Sort Arena", "standings": standings, "votes": votes})
