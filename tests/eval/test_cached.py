"""Cached rows on the leaderboard, beside what takes as long without a cache; boards without them stay as they were."""

import csv
import io
import itertools
import re

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.leaderboard import CACHE_COLUMNS, leaderboard, table
from gen.eval.pictures import heatmap
from gen.eval.ranking import equal_time_rival, groups, pareto_front
from gen.eval.sampler_text import sampler_text
from tests.eval.test_leaderboard import HOSTILE, Page
from tests.eval.test_record import made

WORDS = ("cache", "front", "drift", "Pareto", "speed-up")


def sampled(label, fid, speed, steps, spec=None, **changes):
    """A row of one run, sampled by Euler."""
    sampler = {"solver": {"name": "euler"}, "steps": steps, "grid": {"name": "linear"}, "guide": None, "cache": spec}
    measured = {"images_per_second": speed, "ms_per_image": 1000 / speed}
    return made(label, fid=fid, se=0.01, nfe=float(steps), sampler=sampler, speed=measured, **changes)


def cached(label="lite", fid=2.1, speed=220.0, interval=3, sites=("blocks.0", "final"), **changes):
    """What evaluate writes of a cache that computes 18 of 50 steps, and skips the others at a tenth of the cost."""
    cache = {
        "batch": 100, "full": 18, "evaluations": 50, "fraction": 0.36, "equal_steps": 21, "memory_mb": 1.5,
        "ratio": {"value": 0.424, "low": 0.42, "high": 0.43}, "c": {"value": 0.1, "low": -0.09, "high": 0.11},
        "speedup": {"value": 2.36, "low": 2.33, "high": 2.38},
        "drift": {"rmse": 0.02, "se": 0.001, "psnr": 40.0, "n": 100},
        "map": {"png": heatmap(torch.ones(len(sites), 50)), "sites": list(sites), "steps": 50},
    }  # fmt: skip
    spec = {"name": "taylorseer_lite", "interval": interval, "coordinate": {"name": "step"}, "sites": ["trunk"]}
    return sampled(label, fid, speed, 50, spec, cache=cache | changes)


@pytest.fixture
def records():
    return [
        sampled("whole", 2.0, 100.0, 50),
        sampled("fewer", 2.2, 200.0, 21),
        sampled("few", 3.0, 400.0, 10),
        cached(),
        cached("wide", 3.5, 300.0, 6, equal_steps=17),
    ]


def test_front_and_rival(records) -> None:
    (group,) = groups(records)
    assert [row.record.label for row in pareto_front(group)] == ["whole", "lite", "few"]
    lite, wide = (row for row in group.rows if row.record.cache)
    assert equal_time_rival(group, lite).record.label == "fewer" and equal_time_rival(group, wide) is None
    (same,) = groups(
        [sampled("slow", 2.0, 9.0, 5), sampled("as good, as fast", 2.0, 9.0, 5), sampled("x", 1.0, 1.0, 5)]
    )
    assert [row.record.label for row in pareto_front(same)] == ["x", "slow"]


def test_page_shows_what_a_cache_does(records, tmp_path) -> None:
    text = leaderboard(records, tmp_path).read_text()
    page = Page(text)
    assert page.open == [] and all(v.startswith("data:image/png;base64,") for v in page.loads)
    (rows,) = page.tables
    (lite,) = (below for row, below in itertools.pairwise(rows) if len(row) > 2 and row[2].startswith("lite"))
    shown = " ".join(lite[1].split())
    for words in ("blocks.0final", "full steps36%18 of 50", "speed-up2.36×2.33–2.38", "drift0.0200±0.001040.0 dB"):
        assert words in shown, words
    assert "skipped step0.1000.0" not in shown and "0.100−0.090–0.110" in shown and "1.5MiB" in shown
    assert "21 stepsrow 3, FID +0.100" in shown  # the fewer steps are worse by as much
    assert text.count('<tr class="cache">') == text.count('<figure class="map">') == 2 and 'width="499"' in text
    assert [row[8] for row in rows if len(row) > 8][2:] == ["100front", "220front", "200", "400front", "300"]


def test_plots_join_one_kind_of_cache_and_draw_the_front(records, tmp_path) -> None:
    text = leaderboard(records, tmp_path).read_text()
    evaluations, speed = re.findall(r'<svg class="plot" viewBox="0 0 560.*?</svg>', text, flags=re.DOTALL)
    assert evaluations.count("<g>") == 3 and "taylorseer" not in evaluations and 'class="front"' not in evaluations
    assert speed.count("<g>") == 5 and speed.count('class="line') == 2 and speed.count('class="front"') == 1
    legend = re.findall(r"</svg>([^<]+)</li>", text)
    assert legend == ["teacher, euler", "teacher, euler, taylorseer_lite", "Pareto front"]


def test_text_markdown_and_csv_say_the_same(records, tmp_path) -> None:
    path = leaderboard(records, tmp_path)
    line = next(line for line in table(records).splitlines() if " lite " in line)
    cells = ["36%", "0.10", "2.36 (2.33 – 2.38)", "0.0200 ± 0.0010", "21 steps (#3)", "front"]
    assert " ".join(line.split()).endswith(" ".join(cells))
    assert f"| {' | '.join(cells)} |" in path.with_suffix(".md").read_text()
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert [row["label"] for row in rows] == ["whole", "lite", "fewer", "few", "wide"]
    numbers = [float(rows[1][name]) for name in CACHE_COLUMNS]
    assert numbers == [0.36, 0.1, -0.09, 0.11, 2.36, 2.33, 2.38, 0.02, 40.0, 21, 1.5]
    assert not any(rows[0][name] for name in CACHE_COLUMNS)


def test_boards_without_caches_know_nothing_of_them(records, tmp_path) -> None:
    path = leaderboard([r for r in records if not r.cache], tmp_path)
    written = [path.with_suffix(suffix).read_text() for suffix in (".html", ".md", ".csv")]
    for text in (*written, table(records[:3])):
        shown = re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
        assert not [word for word in WORDS if word in shown]


def test_of_many_sites_the_blocks_are_named(tmp_path) -> None:
    sites = [f"blocks.{i}.{half}.raw" for i in range(28) for half in ("attn", "mlp")] + ["final"]
    text = leaderboard(cached(sites=sites), tmp_path).read_text()
    names = re.findall(r'<li style="flex-grow:(\d)">([^<]*)</li>', text)
    assert names == [("2", f"blocks.{i}") for i in range(28)] + [("1", "final")]
    single = [f"hidden.{i}" for i in range(40)]  # rows of six pixels: room for every other name
    names = re.findall(r"<li style[^>]*>([^<]*)</li>", leaderboard(cached(sites=single), tmp_path).read_text())
    assert names == [name if i % 2 == 0 else "" for i, name in enumerate(single)]


def test_a_cache_is_named_in_few_words() -> None:
    assert sampler_text(cached().sampler) == "euler, 50 steps, taylorseer_lite(interval=3)"
    custom = {
        "name": "custom",
        "policy": {"name": "mask", "mask": [True, False]},
        "predictor": {"name": "reuse"},
        "base": "",
    }
    text = sampler_text({"solver": {"name": "euler"}, "steps": 5, "cache": custom})
    assert text == "euler, 5 steps, custom(policy=mask, predictor=reuse)"


def test_a_record_with_little_of_a_cache_is_shown(tmp_path) -> None:
    bare = sampled("bare", 2.0, 1.0, 5, {"name": "fora"}, cache={"fraction": 1.0, "c": None, "map": None})
    assert "full steps" in leaderboard(bare, tmp_path).read_text() and "100%" in table(bare)


def test_words_of_a_cache_stay_words_and_nonsense_is_refused(tmp_path) -> None:
    page = Page(leaderboard(cached(sites=(HOSTILE,)), tmp_path).read_text())
    assert page.tags.count("script") == 1 and all(v.startswith("data:") for v in page.loads)
    site_map = {"png": heatmap(torch.ones(1, 3)), "sites": ["a"], "steps": 3}
    for wrong, says in (
        ({"map": {"png": "x", "sites": [], "steps": 3}}, "no PNG"),
        ({"map": {**site_map, "sites": [3]}}, "SiteMap.sites: got 3, expected text"),
        ({"map": {**site_map, "steps": "many"}}, "SiteMap.steps: got 'many', expected a whole number"),
        ({"fraction": "all"}, "CacheSaving.fraction: got 'all', expected a number"),
        ({"c": {"value": float("nan"), "low": 0.0, "high": 1.0}}, "Interval.value: got nan, expected a finite number"),
    ):
        with pytest.raises(UserError) as error:
            cached(**wrong)
        assert says in str(error.value) and "\n" not in str(error.value)
