"""Plots: everything inside the frame, scales that a reader can trust."""

import re
from xml.etree import ElementTree

import pytest

from gen.eval.plot import HEIGHT, WIDTH, Axis, Point, Series, marker, number, plot


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
    root = ElementTree.fromstring(plot(series, x="NFE", y="FID", title='a "title"', floor=0.5, powers=True))
    assert root.get("aria-label") == 'a "title"' and root.get("role") == "img"
    points = [p for e in root.iter() for p in (e.get("points") or "").split()]
    pairs = [tuple(map(float, p.split(","))) for p in points]
    bars = [
        float(v) for e in root.iter("path") for v in re.findall(r"[MV]-?[\d.]+ ?(-?[\d.]+)?", e.get("d") or "") if v
    ]
    assert pairs and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in pairs)
    assert bars and all(0 <= y <= HEIGHT for y in bars)
    texts = [e.text for e in root.iter("text")]
    assert "real images 0.50" in texts and {"1", "2", "4", "8", "16"} <= set(texts)
    assert sum(e.get("class", "").startswith("line") for e in root.iter("polyline")) == 1


def test_neighbouring_series_differ_in_shape_as_well_as_colour() -> None:
    kinds = [(marker(i, 0, 0).split('"')[1], marker(i, 0, 0).count(",")) for i in range(5)]
    assert len({colour for colour, _ in kinds}) == 5 and len({marker(i, 0, 0).split('"')[3] for i in range(5)}) == 5


def test_tick_labels() -> None:
    assert [number(v) for v in (0.05, 0.5, 1.0, 20.0, 20000.0)] == ["0.05", "0.5", "1", "20", "20,000"]
