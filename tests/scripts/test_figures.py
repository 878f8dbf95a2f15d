"""The figures and the table of docs/mathematics.md are what the code draws and measures."""

import re
from pathlib import Path

import pytest

from scripts import figures

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
def test_the_table_and_the_legends_are_what_is_measured(tmp_path, capsys):
    assert figures.main(["--out", str(tmp_path)]) == 0
    page = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(figures.SOLVERS) and all(f"{row}\n" in page for row in rows)
    for drawn in tmp_path.glob("*.svg"):
        committed, text = (DOCS / "figures" / drawn.name).read_text("utf-8"), drawn.read_text("utf-8")
        assert re.findall(r"<text.*?</text>", committed) == re.findall(r"<text.*?</text>", text)
