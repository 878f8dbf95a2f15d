"""The arena's page in Chromium: a vote with keys, one with the mouse, and what a voter can change before sending."""

import io
import threading
import time

import pytest
from PIL import Image

from gen.eval.arena.contestants import contestants
from gen.eval.arena.server import Arena, application, bound
from gen.eval.arena.votes import VoteFile, read_votes

pytestmark = pytest.mark.browser


@pytest.fixture
def arena(tmp_path):
    """Four models, whose pictures are as wide as their place in the alphabet says; and the address of their arena."""
    import uvicorn

    for i, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        file = io.BytesIO()
        Image.new("RGB", (10 + i, 10), (40 * i, 90, 120)).save(file, "PNG")
        (tmp_path / name / "0.png").write_bytes(file.getvalue())
    listening = bound("127.0.0.1", 0)
    with listening, VoteFile(tmp_path / "votes.jsonl") as votes:
        arena = Arena(contestants([tmp_path / name for name in "abcd"]), votes, prompts=["<b>a cat</b>"])
        server = uvicorn.Server(uvicorn.Config(application(arena), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def models(page):
    """The models from the left, which the voter cannot see."""
    widths = []
    while len(widths) < 4 or not all(widths):
        page.wait_for_timeout(10)
        widths = page.eval_on_selector_all("#pictures img", "pictures => pictures.map(p => p.naturalWidth)")
    return ["abcd"[width - 10] for width in widths]


def badges(page):
    return page.eval_on_selector_all("#pictures .badge", "badges => badges.map(b => b.textContent)")


def says(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def test_votes_with_keys_and_with_the_mouse(page, arena, tmp_path) -> None:
    page.goto(arena)
    shown = [models(page)]
    assert page.inner_text("#prompt") == "<b>a cat</b>" and page.is_disabled("#send")
    for key in ("2", "1", "=", "4", "3", "Backspace", "3"):
        page.keyboard.press(key)
    assert badges(page) == ["2", "1", "4", "2"]
    page.keyboard.press("Enter")
    says(page, "1 vote so far")
    shown.append(models(page))
    pictures = page.locator("#pictures button")
    pictures.nth(3).click()
    pictures.nth(0).click()
    pictures.nth(3).click()  # taken back: the other moves up
    assert badges(page) == ["1", "", "", ""]
    assert pictures.nth(0).get_attribute("aria-label") == "Picture 1, rank 1"
    page.click("#tie")
    pictures.nth(1).click()
    page.click("#send")
    says(page, "2 votes so far")
    page.keyboard.press("1")
    page.focus("#undo")
    page.keyboard.press("Enter")  # undoes, and sends nothing
    assert badges(page) == [""] * 4
    page.keyboard.press("s")
    models(page)
    first, second = read_votes(tmp_path / "votes.jsonl")
    assert (list(first.models), first.ranks) == (shown[0], (2, 1, 4, 2))
    assert (list(second.models), second.ranks) == (shown[1], (1, 1, None, None))
    page.click("footer a")
    assert "4 models, 2 votes" in page.inner_text("header") and page.locator("tbody").count() == 4


def test_nothing_is_lost_when_the_server_is_away(page, arena) -> None:
    page.goto(arena)
    models(page)
    page.keyboard.press("1")
    page.evaluate("() => { window.real = fetch; window.fetch = () => Promise.reject(new Error('away')); }")
    page.keyboard.press("Enter")
    says(page, "away. Nothing was lost")
    assert badges(page)[0] == "1" and not page.is_disabled("#send")
    page.evaluate("() => { window.fetch = window.real; }")
    page.keyboard.press("Enter")
    says(page, "1 vote so far")


@pytest.mark.parametrize("width", [1200, 400])
def test_fits_the_width(page, arena, width) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(arena)
    models(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
