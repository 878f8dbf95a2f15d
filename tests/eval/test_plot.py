"""Plots: everything inside the frame, scales that a reader can trust."""

import re
from xml.etree import ElementTree

import pytest

from gen.eval.pages import environment
from gen.eval.plot import HEIGHT, WIDTH, Axis, Plot, Point, Series, tick_text

MACROS = environment().get_template("macros.html").module


def test_log_axis_is_even_in_ratios() -> None:
    axis = Axis(1.0, 100.0, 0.0, 200.0, log=True)
    assert [axis(v) for v in (1.0, 10.0, 100.0)] == pytest.approx([0, 100, 200])
    assert axis(1e-9) == 0 and axis(1e9) == 200  # clipped to the frame
    assert axis.ticks() == pytest.approx([1, 2, 5, 10, 20, 50, 100])


def test_linear_axis_starts_at_zero_and_holds_negative_values() -> None:
    assert Axis.around([3.0, 5.0], 0, 100, log=False).low == 0
    below = Axis.around([-1.0, 5.0], 0, 100, log=False)
    assert below.low < -1 and 0.0 in below.ticks()


@pytest.mark.parametrize("values", [[1.0], [1e-4, 1e5], [3.0, 3.1], [0.07, 0.09], [1000.0, 20000.0]])
@pytest.mark.parametrize("log", [True, False])
def test_there_are_some_ticks_but_not_many(values, log) -> None:
    axis = Axis.around(values, 0, 100, log)
    ticks = axis.ticks()
    assert all(axis.low <= v <= axis.high for v in ticks)
    assert 2 <= len(ticks) <= 12 and ticks == sorted(ticks)


def test_plot_is_a_well_formed_picture_inside_its_frame() -> None:
    series = [
        Series("<a>", [Point(1, 100, 5), Point(2, 20, 3, "a & b"), Point(20, 1, 0.9)], 0),
        Series("b", [Point(3, 1.5)], 7),
    ]
    plot = Plot('a "title"', "NFE", "FID", series, floor=0.5, floor_text="real images 0.50", powers=True)
    root = ElementTree.fromstring(str(MACROS.svg(plot)))
    assert root.get("aria-label") == 'a "title"' and root.get("role") == "img"
    points = [p for e in root.iter() for p in (e.get("points") or "").split()]
    pairs = [tuple(map(float, p.split(","))) for p in points]
    marks = [e.get("transform")[10:-1].split() for e in root.iter("path") if "mark" in e.get("class")]
    assert len(marks) == 4
    pairs += [tuple(map(float, p)) for p in marks]
    bars = [e.get("d") for e in root.iter("path") if e.get("class").startswith("bar")]
    bars = [float(v) for d in bars for v in re.findall(r"[MV]-?[\d.]+ ?(-?[\d.]+)?", d) if v]
    assert pairs and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in pairs)
    assert bars and all(0 <= y <= HEIGHT for y in bars)
    texts = [e.text for e in root.iter("text")]
    assert "real images 0.50" in texts and {"1", "2", "4", "8", "16"} <= set(texts)
    assert sum(e.get("class", "").startswith("line") for e in root.iter("polyline")) == 1


def test_neighbouring_series_differ_in_shape_as_well_as_colour() -> None:
    marks = [ElementTree.fromstring(str(MACROS.mark(i))) for i in range(5)]
    assert len({mark.get("class") for mark in marks}) == len({mark.get("d") for mark in marks}) == 5


def test_tick_labels() -> None:
    assert [tick_text(v) for v in (0.05, 0.5, 1.0, 20.0, 20000.0)] == ["0.05", "0.5", "1", "20", "20,000"]
