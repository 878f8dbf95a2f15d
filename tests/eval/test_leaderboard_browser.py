"""The leaderboard's page in Chromium: sorting, filtering, choosing columns, and no width that it does not fit."""

import pytest

from gen.eval.leaderboard import leaderboard
from gen.eval.metrics.recall import Recall
from tests.eval.test_published import claim
from tests.eval.test_record import made, measured

pytestmark = pytest.mark.browser


@pytest.fixture
def board(page, tmp_path):
    """A page with three measured rows, of which one has a recall, and two published ones."""
    records = [made("teacher", fid=2.0, nfe=8), made("student", fid=2.2, nfe=1), made("one step", fid=25.0, nfe=2)]
    more = made("student", fid=2.2, nfe=1, metrics=[measured(Recall(), 0.5)])
    claims = [claim("old", table=records[0].comparability, values={"fid": 1.5}, nfe=99),
              claim("new", table=records[0].comparability, values={"fid": 1.2})]  # fmt: skip
    page.goto(leaderboard([*records, more, *claims], tmp_path).as_uri())
    return page


def methods(page):
    rows = page.locator("tbody.entry:not([hidden]) .name b, tbody.published:not([hidden]) .name")
    return [text.split("\n")[0] for text in rows.all_inner_texts()]


def heads(page):
    return [text.strip("↓↑") for text in page.locator("thead th:visible").all_inner_texts()]


def test_sorts_by_any_column_with_published_rows_apart(board) -> None:
    assert methods(board) == ["teacher", "student", "one step", "old", "new"]
    for key, expected in (
        ("nfe", ["student", "one step", "teacher", "old", "new"]),
        ("nfe", ["teacher", "one step", "student", "old", "new"]),
        ("FID", ["teacher", "student", "one step", "new", "old"]),
        ("speed", ["student", "one step", "teacher", "new", "old"]),
        ("Recall", ["student", "one step", "teacher", "new", "old"]),  # those without one stay behind, in their order
        ("method", ["one step", "student", "teacher", "new", "old"]),
        ("rank", ["teacher", "student", "one step", "new", "old"]),
    ):
        board.click(f"th[data-key='{key}'] button")
        assert methods(board) == expected, key
        assert board.locator("th[aria-sort]").count() == 1
    assert board.locator("tbody").first.inner_text().find("Real images") >= 0  # the floor stays on top


def test_filters_rows_by_their_words(board) -> None:
    board.fill("input[type=search]", "HEUN one")
    assert methods(board) == ["one step"]
    assert board.locator(".count").inner_text() == "1 of 5 rows"
    board.fill("input[type=search]", "")
    assert len(methods(board)) == 5 and board.locator(".count").inner_text() == ""


def test_columns_are_chosen(board) -> None:
    before = heads(board)
    board.click(".chooser summary")
    board.get_by_label("KID").uncheck()
    board.get_by_label("Samples").uncheck()
    assert heads(board) == [head for head in before if head not in ("KID", "Samples")]
    assert board.locator("tbody.entry").first.locator("td[data-h=KID]").is_hidden()
    board.get_by_label("KID").check()
    assert heads(board) == [head for head in before if head != "Samples"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_reads_at_400_pixels(board, scheme) -> None:
    board.emulate_media(color_scheme=scheme)
    board.set_viewport_size({"width": 400, "height": 900})
    assert board.evaluate("document.documentElement.scrollWidth") <= 400
    assert board.locator("td.name b").nth(1).is_visible() and board.locator("thead").first.is_hidden()
    board.select_option("select", "nfe")
    assert methods(board)[0] == "student"
    board.click("button[title='Reverse the order']")
    assert methods(board)[0] == "teacher"
    cells = board.locator("tbody.entry td:visible")
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 400 for cell in cells.all() if (box := cell.bounding_box()))


def test_whole_without_scripts_and_on_paper(chromium, board) -> None:
    context = chromium.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(board.url)
    assert plain.locator("tbody.entry").count() == 5 and plain.locator(".tools").count() == 0
    context.close()
    board.emulate_media(media="print")
    assert board.locator(".tools").is_hidden() and board.locator("td.name b").nth(1).is_visible()
    style = "element => [getComputedStyle(element).display, getComputedStyle(element).position]"
    assert board.locator("thead button").first.evaluate(style)[0] == "contents"  # buttons are on the first sheet alone
    assert board.locator("td.name").first.evaluate(style)[1] == "static"
